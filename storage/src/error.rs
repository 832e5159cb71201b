//! What can go wrong, one enum per operation.

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longwire_proto::ErrorCode;
use longwire_proto::name::NameError;
use longwire_proto::record::{EncodeError, RecordError};

use crate::watermark::WatermarkClosed;

/// A failed call on a file or folder, with what was being done.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    action: Cow<'static, str>,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// For `map_err`: what was being done, and on what.
    pub(crate) fn on(
        action: impl Into<Cow<'static, str>>,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> FileError {
        let (action, path) = (action.into(), path.to_owned());
        move |source| FileError { action, path, source }
    }

    /// The operating system's error.
    pub fn io(&self) -> &io::Error {
        &self.source
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "the store in {} is in use by another process{}: stop that one, or choose another folder",
        dir.display(), pid.map(|p| format!(" (pid {p})")).unwrap_or_default()
    )]
    Locked {
        /// The store's folder.
        dir: PathBuf,
        /// The other process, if it left its number.
        pid: Option<u32>,
    },
    /// There is no store to look at.
    #[error("there is no store in {}: it has no segments in a folder commitlog", .0.display())]
    Absent(PathBuf),
    /// A setting makes no sense.
    #[error("{0}")]
    Config(String),
    /// The files are of a newer version, or not of a Longwire store.
    #[error("{} {what}; use the Longwire release that wrote it, or a newer one", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// What it says it is.
        what: String,
    },
    /// Records that were durable are damaged or missing. Nothing was changed.
    #[error(
        "the log is damaged where records may have been acknowledged: {reason} at position {position} \
         in {}; {}. Nothing was changed. Restore the file from a backup, or see what is lost with \
         'longwire-broker verify' and copy what is whole with 'longwire-broker verify --salvage FOLDER'",
        path.display(),
        durable.map_or_else(
            || "the checkpoint is missing or damaged".to_owned(),
            |durable| format!("durable up to {durable}")
        )
    )]
    Corrupt {
        /// The segment's file.
        path: PathBuf,
        /// Where the damage begins.
        position: u64,
        /// Everything below this had been acknowledged as durable; `None`: not known.
        durable: Option<u64>,
        /// What is wrong there.
        reason: String,
    },
    /// A call on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The view database failed.
    #[error("the view database failed: {0}; it can be deleted, it is rebuilt from the log")]
    Views(String),
}

/// Why a store could not be salvaged. The original is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SalvageError {
    /// The folder to copy to has something in it.
    #[error("{} is not empty; name a folder that is not there yet", .0.display())]
    Exists(PathBuf),
    /// The copy would be made in the folder of the store itself, or in its place.
    #[error("{} is in the folder of the store, which is left alone; name one elsewhere", .0.display())]
    Inside(PathBuf),
    /// The copy does not fit where it is to go.
    #[error("the copy needs {needed} bytes and there are {free}; free some or name another folder")]
    NoSpace {
        /// Bytes of the segments.
        needed: u64,
        /// Bytes that can be taken up.
        free: u64,
    },
    /// The damaged store cannot be read, or the copy not opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The copy was not closed cleanly.
    #[error(transparent)]
    Close(#[from] CloseError),
    /// A call on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is lost cannot be filled.
    #[error("cannot fill what is lost: {0}")]
    Fill(#[from] EncodeError),
    /// What is known of lost topics, groups and commits cannot be said again in the copy.
    #[error("cannot append to the copy what is known of topics and groups: {0}")]
    Append(#[source] AppendError),
}

/// Why records were not appended. None of them was, except where it says otherwise.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The next segment is not ready yet; use `append_blocking`, which waits for it.
    #[error("the next segment is being prepared")]
    NotReady,
    /// There is no disk space for the next segment.
    #[error("no disk space for the next segment; reads go on, writes resume when there is space")]
    Full,
    /// There is no file descriptor for the next segment.
    #[error("no file descriptor for the next segment: raise the limit of open files (ulimit -n)")]
    NoDescriptor,
    /// A write or sync of the log failed before; nothing can be appended until a restart.
    #[error("the store has failed: {0}")]
    Poisoned(Arc<str>),
    /// Writing these very records failed. Any of them may be in the log: where that takes more than one
    /// write, the others may have gone well, and the next start keeps what is whole.
    #[error("the store has failed, and some of the records may be stored: {0}")]
    Unfinished(Arc<str>),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
    /// The topic was deleted.
    #[error("the topic has been deleted")]
    TopicDeleted,
    /// A record that no segment can hold.
    #[error("a record of {bytes} bytes does not fit a segment, which holds {max}")]
    RecordTooLarge {
        /// The record's size.
        bytes: u64,
        /// The largest that fits.
        max: u64,
    },
}

impl AppendError {
    /// The stable code a client is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            AppendError::NotReady | AppendError::NoDescriptor => ErrorCode::Overloaded,
            AppendError::Full => ErrorCode::StorageFull,
            AppendError::Poisoned(_) | AppendError::Unfinished(_) => ErrorCode::StorePoisoned,
            AppendError::Closed => ErrorCode::ShuttingDown,
            AppendError::TopicDeleted => ErrorCode::UnknownTopic,
            AppendError::RecordTooLarge { .. } => ErrorCode::MessageTooLarge,
        }
    }
}

impl From<WatermarkClosed> for AppendError {
    fn from(closed: WatermarkClosed) -> AppendError {
        AppendError::Poisoned(closed.reason)
    }
}

/// Why bytes from a producer are not records that can be appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {index} of the run: {reason}")]
pub struct RunError {
    pub(crate) index: u32,
    pub(crate) reason: RunFault,
}

/// What is wrong with one record of a run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RunFault {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("it is a V2 record, which Longwire does not write")]
    Version,
    #[error("its topic is not the run's")]
    Topic,
    #[error("its queue is {0}, not the run's")]
    Queue(u32),
    #[error("the run has no records")]
    Empty,
}

impl RunError {
    /// The stable code a client is told.
    pub fn code(&self) -> ErrorCode {
        match &self.reason {
            RunFault::Record(error) => error.code(),
            _ => ErrorCode::InvalidRecord,
        }
    }
}

/// Why a read cannot be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The offset is not in the queue.
    #[error("the offset is outside the queue's range {min}..={max}")]
    OutOfRange {
        /// The first retained offset.
        min: u64,
        /// One past the last visible offset.
        max: u64,
    },
    /// The consume queue would have to be read from disk; plan again where that may block.
    #[error("the consume queue is not in memory")]
    IndexCold,
    /// The consume queue or the log cannot be read.
    #[error("reading the store failed: {0}")]
    Io(#[from] io::Error),
}

impl ReadError {
    /// The stable code a client is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            ReadError::OutOfRange { .. } => ErrorCode::OffsetOutOfRange,
            ReadError::IndexCold => ErrorCode::Overloaded,
            ReadError::Io(_) => ErrorCode::Internal,
        }
    }
}

/// Why a topic was not created, changed or deleted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// There is one of that name.
    #[error("topic {0:?} exists already")]
    Exists(String),
    /// There is none of that name.
    #[error("topic {0:?} does not exist")]
    Unknown(String),
    /// The name is not allowed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The topic is one of Longwire's own.
    #[error("topic {0:?} belongs to Longwire and cannot be changed")]
    System(String),
    /// A number of queues that cannot be.
    #[error("topic {name:?} cannot have {asked} queues: {reason}")]
    Queues {
        /// The topic.
        name: String,
        /// The number asked for.
        asked: u32,
        /// Why not.
        reason: &'static str,
    },
    /// The change could not be recorded.
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl TopicError {
    /// The stable code a client is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            TopicError::Exists(_) => ErrorCode::TopicExists,
            TopicError::Unknown(_) => ErrorCode::UnknownTopic,
            TopicError::Name(_) => ErrorCode::InvalidName,
            TopicError::System(_) => ErrorCode::SystemTopic,
            TopicError::Queues { .. } => ErrorCode::InvalidRequest,
            TopicError::Append(error) => error.code(),
        }
    }
}

/// Why a group was not created or deleted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// There is none of that name.
    #[error("group {0:?} does not exist")]
    Unknown(String),
    /// The name is not allowed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The change could not be recorded.
    #[error(transparent)]
    Append(#[from] AppendError),
}

impl GroupError {
    /// The stable code a client is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            GroupError::Unknown(_) => ErrorCode::UnknownGroup,
            GroupError::Name(_) => ErrorCode::InvalidName,
            GroupError::Append(error) => error.code(),
        }
    }
}

/// Why a store could not be closed cleanly. What was acknowledged is durable all the same.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// The store had failed before.
    #[error("the store has failed: {0}")]
    Poisoned(Arc<str>),
    /// The last checkpoint could not be written; the next start scans the log.
    #[error("the closing checkpoint failed: {0}")]
    Checkpoint(String),
}
