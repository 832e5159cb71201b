//! The files a run leaves, beside what it prints.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
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
    /// Opens the files before anything is measured: one that cannot be written is told at once. What
    /// an earlier run has left in them stays until there is something to write.
    pub(super) fn open(args: &FileArgs) -> Result<Files, Failure> {
        Ok(Files { hdr: open(args.hdr.as_deref())?, html: open(args.html.as_deref())? })
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

fn open(path: Option<&Path>) -> Result<Option<(File, PathBuf)>, Failure> {
    let Some(path) = path else {
        return Ok(None);
    };
    match OpenOptions::new().write(true).create(true).truncate(false).open(path) {
        Ok(file) => Ok(Some((file, path.to_owned()))),
        Err(error) => {
            let message = format!("cannot write {}: {error}", path.display());
            Err(Failure::new(Exit::Usage, message))
        }
    }
}

fn write((file, path): (File, PathBuf), text: &str) -> Result<(), Failure> {
    let written = replace(file, text);
    written.map_err(|error| Failure::write(&path.display().to_string(), &error))
}

fn replace(mut file: File, text: &str) -> io::Result<()> {
    // A pipe or a terminal has nothing to cut.
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    file.write_all(text.as_bytes())
}
