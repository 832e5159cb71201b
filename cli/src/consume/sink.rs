//! Where messages are written to.

use std::fs;
use std::future::pending;
use std::io::{self, BufWriter, StdoutLock, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use longwire_client::Received;
use tokio::io::Interest;
use tokio::net::unix::pipe;

use super::format::Format;
use crate::error::Failure;

const BUFFER_BYTES: usize = 256 * 1024;

/// Standard output, or a folder with a file for each message.
#[derive(Debug)]
pub(crate) enum Sink {
    Stdout {
        out: BufWriter<StdoutLock<'static>>,
        format: Format,
        /// Tells when nobody reads any more; nothing where that cannot be, as with a file.
        watch: Option<pipe::Sender>,
    },
    Folder {
        path: PathBuf,
    },
}

impl Sink {
    /// Standard output, in this format.
    pub(crate) fn stdout(format: Format) -> Sink {
        let out = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
        // Whatever it is: it is only watched, and left in the mode in which it is.
        let watched = io::stdout().as_fd().try_clone_to_owned();
        let watch = watched.and_then(pipe::Sender::from_owned_fd_unchecked).ok();
        Sink::Stdout { out, format, watch }
    }

    /// A folder, which is made if it is not there.
    pub(crate) fn folder(path: PathBuf) -> Result<Sink, Failure> {
        fs::create_dir_all(&path)
            .map_err(|error| Failure::write(&format!("to {}", path.display()), &error))?;
        Ok(Sink::Folder { path })
    }

    /// Writes one message, perhaps only into the buffer.
    pub(crate) fn write(&mut self, message: &Received) -> Result<(), Failure> {
        match self {
            Sink::Stdout { out, format, .. } => {
                format.write(out, message).map_err(|e| Failure::write("the output", &e))
            }
            Sink::Folder { path } => {
                // In the order of names, the files of a queue are in the order of its messages.
                let name =
                    format!("{}-{:05}-{:020}", message.topic(), message.queue(), message.offset());
                let file = path.join(name);
                fs::write(&file, message.body())
                    .map_err(|error| Failure::write(&file.display().to_string(), &error))
            }
        }
    }

    /// Passes on what is in the buffer.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        match self {
            Sink::Stdout { out, .. } => {
                out.flush().map_err(|error| Failure::write("the output", &error))
            }
            Sink::Folder { .. } => Ok(()),
        }
    }

    /// Completes once nobody reads the output any more: while nothing is written, no write tells.
    pub(crate) async fn abandoned(&self) {
        match self {
            Sink::Stdout { watch: Some(watch), .. } => drop(watch.ready(Interest::ERROR).await),
            _ => pending().await,
        }
    }
}
