//! The files a run leaves, beside what it prints.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;

use hdrhistogram::Histogram;

use super::report::Report;
use super::{FileArgs, hdr, html};
use crate::error::{Exit, Failure};

/// Files that are open for writing.
#[derive(Debug)]
pub(super) struct Files {
    hdr: Option<Output>,
    html: Option<Output>,
}

impl Files {
    /// Opens the files before anything is measured: one that cannot be written is told at once. What
    /// an earlier run has left in them stays until there is something to write.
    pub(super) fn open(args: &FileArgs) -> Result<Files, Failure> {
        let open = |path: &Option<PathBuf>| path.clone().map(Output::open).transpose();
        Ok(Files { hdr: open(&args.hdr)?, html: open(&args.html)? })
    }

    /// Writes what was measured, to the second file also where the first cannot be written.
    pub(super) fn write(self, report: &Report, latency: &Histogram<u64>) -> Result<(), Failure> {
        let hdr = self.hdr.map(|output| output.write(&hdr::percentiles(latency)));
        let html = self.html.map(|output| output.write(&html::page(report, latency)));
        hdr.unwrap_or(Ok(()))?;
        html.unwrap_or(Ok(()))
    }
}

/// A file to write; one that is new is removed again where nothing is written.
#[derive(Debug)]
struct Output {
    file: File,
    path: PathBuf,
    is_new: bool,
}

impl Output {
    fn open(path: PathBuf) -> Result<Output, Failure> {
        let mut options = OpenOptions::new();
        options.write(true);
        let (opened, is_new) = match options.clone().create_new(true).open(&path) {
            // A link to nothing is there, and no file.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                (options.create(true).truncate(false).open(&path), false)
            }
            opened => (opened, true),
        };
        match opened {
            Ok(file) => Ok(Output { file, path, is_new }),
            Err(error) => {
                let message = format!("cannot write {}: {error}", path.display());
                Err(Failure::new(Exit::Usage, message))
            }
        }
    }

    fn write(mut self, text: &str) -> Result<(), Failure> {
        let replaced = self.replace(text);
        replaced.map_err(|error| Failure::write(&self.path.display().to_string(), &error))?;
        self.is_new = false;
        Ok(())
    }

    fn replace(&mut self, text: &str) -> io::Result<()> {
        // A pipe or a terminal has nothing to cut.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        self.file.write_all(text.as_bytes())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.is_new {
            // What ended the run is what is told.
            let _ = fs::remove_file(&self.path);
        }
    }
}
