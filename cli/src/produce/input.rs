//! Reads the files, or standard input, on a thread of its own.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tokio::sync::mpsc;

use super::lines::{CutError, Cutter, Overlong, Piece, Split};
use crate::error::{Exit, Failure};
use crate::size;

/// Largest body of one message, in bytes.
pub(crate) const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How many reads may wait to be sent. Each holds at most one long line or one read's lines.
const READS_AHEAD: usize = 4;

/// `--split` on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SplitArg {
    Lines,
    File,
    Bytes(usize),
}

impl FromStr for SplitArg {
    type Err = String;

    fn from_str(text: &str) -> Result<SplitArg, String> {
        match text {
            "lines" => Ok(SplitArg::Lines),
            "file" => Ok(SplitArg::File),
            _ => match size::bytes_not_zero(text).map(usize::try_from) {
                Ok(Ok(bytes)) if bytes <= BODY_BYTES_MAX => Ok(SplitArg::Bytes(bytes)),
                Ok(_) => Err("a message has at most 4MiB".to_owned()),
                Err(_) => Err("give lines, file, or a size such as 64KiB".to_owned()),
            },
        }
    }
}

/// What is to be read, known to be there.
#[derive(Debug)]
pub(crate) struct Input {
    files: Vec<PathBuf>,
    split: SplitArg,
    /// How much it is, where it is only regular files.
    pub(crate) bytes: Option<u64>,
}

/// What one read brought, in order.
#[derive(Debug)]
pub(crate) struct Portion {
    pub(crate) pieces: Vec<Piece>,
    /// Index of the file.
    pub(crate) file: usize,
}

impl Input {
    /// Fails early, before anything is sent, if a file is not there or may not be read.
    pub(crate) fn check(files: &[PathBuf], split: SplitArg) -> Result<Input, Failure> {
        let files = if files.is_empty() { vec![PathBuf::from("-")] } else { files.to_vec() };
        let mut bytes = Some(0);
        for path in &files {
            if is_stdin(path) {
                bytes = None;
                continue;
            }
            let metadata = path.metadata().map_err(|error| cannot_read(path, &error))?;
            if metadata.is_dir() {
                let shown = path.display();
                return Err(Failure::usage(format!("{shown} is a folder; name the files in it")));
            }
            if metadata.is_file() {
                File::open(path).map_err(|error| cannot_read(path, &error))?;
            }
            bytes = bytes.filter(|_| metadata.is_file()).map(|sum: u64| sum + metadata.len());
        }
        Ok(Input { files, split, bytes })
    }

    /// How to speak of one of the files.
    pub(crate) fn names(&self) -> Vec<String> {
        self.files.iter().map(|path| shown(path)).collect()
    }

    /// Starts reading. What could be read before a failure comes before it.
    pub(crate) fn read(self) -> io::Result<mpsc::Receiver<Result<Portion, Failure>>> {
        let (sender, receiver) = mpsc::channel(READS_AHEAD);
        // Not the runtime's: a thread that waits for standard input cannot be asked to stop.
        std::thread::Builder::new().name("read".to_owned()).spawn(move || {
            for (file, path) in self.files.iter().enumerate() {
                let outcome = if is_stdin(path) {
                    read_pieces(io::stdin().lock(), path, file, self.split, &sender)
                } else {
                    match File::open(path) {
                        Ok(source) => read_pieces(source, path, file, self.split, &sender),
                        Err(error) => Err(cannot_read(path, &error)),
                    }
                };
                match outcome {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(failure) => {
                        let _ = sender.blocking_send(Err(failure));
                        return;
                    }
                }
            }
        })?;
        Ok(receiver)
    }
}

/// False where nobody wants the pieces any more.
fn read_pieces(
    source: impl Read,
    path: &Path,
    file: usize,
    split: SplitArg,
    sender: &mpsc::Sender<Result<Portion, Failure>>,
) -> Result<bool, Failure> {
    let cut = match split {
        SplitArg::Lines => Split::Lines { overlong: Overlong::Refuse },
        SplitArg::File => Split::Whole,
        SplitArg::Bytes(bytes) => Split::Chunks(bytes),
    };
    let mut cutter = Cutter::new(source, cut, BODY_BYTES_MAX);
    loop {
        let mut pieces = Vec::new();
        let outcome = cutter.advance(&mut pieces);
        let portion = Portion { pieces, file };
        if !portion.pieces.is_empty() && sender.blocking_send(Ok(portion)).is_err() {
            return Ok(false);
        }
        match outcome {
            Ok(true) => {}
            Ok(false) => return Ok(true),
            Err(CutError::Read(error)) => return Err(cannot_read(path, &error)),
            Err(CutError::TooLong { number }) => return Err(too_long(path, split, number)),
        }
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn shown(path: &Path) -> String {
    match is_stdin(path) {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    }
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    let exit = match error.kind() {
        io::ErrorKind::NotFound => Exit::Usage,
        _ => Exit::Failed,
    };
    Failure::new(exit, format!("cannot read {}: {error}", shown(path)))
}

fn too_long(path: &Path, split: SplitArg, number: u64) -> Failure {
    let what = match split {
        SplitArg::File => format!("{} is", shown(path)),
        _ => format!("{}: line {number} is", shown(path)),
    };
    let message = format!(
        "{what} longer than a message can be (4 MiB); everything before it was sent; \
         --split 1MiB sends any bytes in pieces"
    );
    Failure::new(Exit::InputRefused, message)
}
