//! The files whose lines are sent.

use std::fs::{self, DirEntry, File};
use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use crate::error::{Exit, Failure};
use crate::produce::input::BODY_BYTES_MAX;
use crate::produce::lines::{CutError, Cutter, Overlong, Piece, Split};

/// How many reads may wait to be sent.
const READS_AHEAD: usize = 4;
/// Folders that are never the user's own text.
const LEFT_OUT: [&str; 2] = ["target", ".git"];
/// Left out where the user did not name the folder: what a broker run there has stored.
const LEFT_OUT_BY_DEFAULT: [&str; 1] = ["longwire-data"];

/// A file, or a folder with all files under it.
#[derive(Debug, Clone)]
pub(super) struct Source {
    path: PathBuf,
    named: bool,
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Survey {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

impl Source {
    /// What the user named, or the sources of the repository.
    pub(super) fn find(named: Option<&Path>) -> Result<Source, Failure> {
        if let Some(path) = named {
            // Found out now, not when half the files are through.
            path.metadata().map_err(|error| cannot_read(path, &error))?;
            return Ok(Source { path: path.to_owned(), named: true });
        }
        let current = std::env::current_dir().ok();
        let around = current.as_deref().and_then(|dir| dir.ancestors().find(|d| is_workspace(d)));
        let built_from =
            || Path::new(env!("CARGO_MANIFEST_DIR")).parent().filter(|d| is_workspace(d));
        match around.or_else(built_from) {
            Some(path) => Ok(Source { path: path.to_owned(), named: false }),
            None => Err(Failure::usage(
                "there is no repository around the current folder; name a file or folder: \
                 longwire quickstart PATH",
            )),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Counts the files, without reading them.
    pub(super) fn survey(&self) -> Result<Survey, Failure> {
        let (mut survey, mut refused) = (Survey::default(), None);
        for file in self.files() {
            match file {
                Ok(file) => {
                    survey.files += 1;
                    survey.bytes += file.metadata().map_or(0, |metadata| metadata.len());
                }
                // It is told when it is its turn, if others are there.
                Err(failure) => refused = refused.or(Some(failure)),
            }
        }
        match (survey.files, refused) {
            (0, Some(failure)) => Err(Failure::failed(format!("cannot read {failure}"))),
            (0, None) => {
                Err(Failure::usage(format!("there are no files under {}", self.path.display())))
            }
            _ => Ok(survey),
        }
    }

    /// Reads all lines, on a thread of its own; or says what could not be read.
    pub(super) fn read(self) -> io::Result<mpsc::Receiver<Result<Vec<Piece>, String>>> {
        let (sender, receiver) = mpsc::channel(READS_AHEAD);
        std::thread::Builder::new().name("read".to_owned()).spawn(move || {
            for file in self.files() {
                match file.map(|path| read_lines(&path, &sender)) {
                    Ok(Ok(true)) => {}
                    Ok(Ok(false)) => return,
                    Ok(Err(failure)) | Err(failure) => {
                        if sender.blocking_send(Err(failure)).is_err() {
                            return;
                        }
                    }
                }
            }
        })?;
        Ok(receiver)
    }

    fn files(&self) -> Walk {
        let named = self.named;
        Walk { start: Some(self.path.clone()), folders: Vec::new(), named }
    }
}

fn is_workspace(folder: &Path) -> bool {
    let manifest = fs::read_to_string(folder.join("Cargo.toml"));
    manifest.is_ok_and(|text| text.lines().any(|line| line.trim() == "[workspace]"))
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    let exit = if error.kind() == io::ErrorKind::NotFound { Exit::Usage } else { Exit::Failed };
    Failure::new(exit, format!("cannot read {}: {error}", path.display()))
}

/// False where nobody wants the lines any more. A file that cannot be read to its end has had the
/// lines before that sent.
fn read_lines(
    path: &Path,
    sender: &mpsc::Sender<Result<Vec<Piece>, String>>,
) -> Result<bool, String> {
    let cannot = |error: &io::Error| format!("{}: {error}", path.display());
    let source = File::open(path).map_err(|error| cannot(&error))?;
    let mut cutter = Cutter::new(source, Split::Lines { overlong: Overlong::Cut }, BODY_BYTES_MAX);
    loop {
        let mut pieces = Vec::new();
        let outcome = cutter.advance(&mut pieces);
        if !pieces.is_empty() && sender.blocking_send(Ok(pieces)).is_err() {
            return Ok(false);
        }
        match outcome {
            Ok(true) => {}
            Ok(false) | Err(CutError::TooLong { .. }) => return Ok(true),
            Err(CutError::Read(error)) => return Err(cannot(&error)),
        }
    }
}

/// All regular files below a path, those of a folder by name. Holds no more than the entries of
/// the folders it is inside of.
struct Walk {
    start: Option<PathBuf>,
    /// Entries still to come, last first, of each folder on the way down.
    folders: Vec<Vec<DirEntry>>,
    named: bool,
}

impl Walk {
    fn enter(&mut self, folder: &Path) -> io::Result<()> {
        let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
        self.folders.push(entries);
        Ok(())
    }

    fn leaves_out(&self, entry: &DirEntry) -> bool {
        let name = entry.file_name();
        LEFT_OUT.iter().any(|out| name == *out)
            || (!self.named && LEFT_OUT_BY_DEFAULT.iter().any(|out| name == *out))
    }
}

impl Iterator for Walk {
    type Item = Result<PathBuf, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(start) = self.start.take() {
            if !start.is_dir() {
                return Some(Ok(start));
            }
            if let Err(error) = self.enter(&start) {
                return Some(Err(format!("{}: {error}", start.display())));
            }
        }
        loop {
            let Some(entry) = self.folders.last_mut()?.pop() else {
                self.folders.pop();
                continue;
            };
            let path = entry.path();
            let outcome = match entry.file_type() {
                Ok(kind) if kind.is_file() => return Some(Ok(path)),
                Ok(kind) if kind.is_dir() && !self.leaves_out(&entry) => self.enter(&path),
                // Links, sockets, pipes and the like.
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                return Some(Err(format!("{}: {error}", path.display())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_walked_by_name_without_what_is_not_the_users() {
        let dir = tempfile::tempdir().unwrap();
        for file in
            ["b/2", "b/1", "a", "target/x", ".git/x", "c/target", "longwire-data/x", ".hidden"]
        {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x\n").unwrap();
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        let files = |named| -> Vec<String> {
            let source = Source { path: dir.path().to_owned(), named };
            let relative =
                |path: PathBuf| path.strip_prefix(dir.path()).unwrap().display().to_string();
            source.files().map(|file| relative(file.unwrap())).collect()
        };
        assert_eq!(files(false), [".hidden", "a", "b/1", "b/2", "c/target"]);
        assert_eq!(files(true), [".hidden", "a", "b/1", "b/2", "c/target", "longwire-data/x"]);
        let one = Source { path: dir.path().join("a"), named: true };
        assert_eq!(one.survey().unwrap().bytes, 2);
        assert!(Source::find(Some(&dir.path().join("none"))).is_err());
    }
}
