//! The files a run leaves, beside what it prints.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use hdrhistogram::Histogram;

use super::report::Report;
use super::{FileArgs, hdr, html};
use crate::error::{Exit, Failure};

/// Files that are open for writing.
#[derive(Debug)]
pub(super) struct Files {
    hdr: Option<(File, PathBuf)>,
    html: Option<(File, PathBuf)>,
}

impl Files {
    /// Makes the files before anything is measured: one that cannot be written is told at once.
    pub(super) fn create(args: &FileArgs) -> Result<Files, Failure> {
        Ok(Files { hdr: create(args.hdr.as_deref())?, html: create(args.html.as_deref())? })
    }

    /// Writes what was measured.
    pub(super) fn write(self, report: &Report, latency: &Histogram<u64>) -> Result<(), Failure> {
        if let Some(file) = self.hdr {
            write(file, &hdr::percentiles(latency))?;
        }
        if let Some(file) = self.html {
            write(file, &html::page(report, latency))?;
        }
        Ok(())
    }
}

fn create(path: Option<&Path>) -> Result<Option<(File, PathBuf)>, Failure> {
    let Some(path) = path else {
        return Ok(None);
    };
    match File::create(path) {
        Ok(file) => Ok(Some((file, path.to_owned()))),
        Err(error) => {
            let message = format!("cannot write {}: {error}", path.display());
            Err(Failure::new(Exit::Usage, message))
        }
    }
}

fn write((mut file, path): (File, PathBuf), text: &str) -> Result<(), Failure> {
    let written = file.write_all(text.as_bytes());
    written.map_err(|error| Failure::write(&path.display().to_string(), &error))
}
