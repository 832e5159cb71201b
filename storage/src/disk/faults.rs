//! Which calls of a recording disk fail, and how.

use std::io;
use std::path::Path;

/// A call of [`Disk`](super::Disk) or [`DiskFile`](super::DiskFile).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each has the name of its call")]
pub enum Verb {
    CreateReserved,
    OpenOrCreate,
    Open,
    OpenReadonly,
    List,
    CreateDir,
    Remove,
    Rename,
    RemoveDir,
    SyncDir,
    SyncFileSystem,
    FreeBytes,
    Lock,
    LockShared,
    Bytes,
    ReadAt,
    ReadResidentAt,
    DataRanges,
    WriteAllAt,
    SetBytes,
    Zero,
    Sync,
    Map,
    SyncMapped,
    DropCache,
}

impl Verb {
    /// All of them.
    pub const ALL: [Verb; 25] = [
        Verb::CreateReserved,
        Verb::OpenOrCreate,
        Verb::Open,
        Verb::OpenReadonly,
        Verb::List,
        Verb::CreateDir,
        Verb::Remove,
        Verb::Rename,
        Verb::RemoveDir,
        Verb::SyncDir,
        Verb::SyncFileSystem,
        Verb::FreeBytes,
        Verb::Lock,
        Verb::LockShared,
        Verb::Bytes,
        Verb::ReadAt,
        Verb::ReadResidentAt,
        Verb::DataRanges,
        Verb::WriteAllAt,
        Verb::SetBytes,
        Verb::Zero,
        Verb::Sync,
        Verb::Map,
        Verb::SyncMapped,
        Verb::DropCache,
    ];

    /// Whether it makes something durable.
    pub fn is_sync(self) -> bool {
        matches!(self, Verb::Sync | Verb::SyncMapped | Verb::SyncDir | Verb::SyncFileSystem)
    }
}

/// What becomes of a call that is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It fails with this error number and has done nothing.
    Error(i32),
    /// A write fails with this error number after half of its bytes.
    Short(i32),
    /// It succeeds and has done nothing.
    Lie,
    /// It panics.
    Panic,
}

/// Calls that do not do what they should.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Which calls; all where this is `None`.
    pub verb: Option<Verb>,
    /// Only syncs of any kind.
    pub syncs_only: bool,
    /// Only on paths with this in them; an empty one fits all.
    pub path: String,
    /// How many of them go well first.
    pub after: u64,
    /// How many then do not; `u64::MAX` for all.
    pub times: u64,
    /// What becomes of those.
    pub outcome: Outcome,
}

impl Fault {
    /// The outcome this fault has for a call, if any. Counts the call.
    fn meets(&mut self, verb: Verb, path: &Path) -> Option<Outcome> {
        let fits = self.verb.is_none_or(|wanted| wanted == verb)
            && (!self.syncs_only || verb.is_sync())
            && path.to_string_lossy().contains(&self.path);
        if !fits {
            return None;
        }
        if self.after > 0 {
            self.after -= 1;
            return None;
        }
        self.times = self.times.checked_sub(1)?;
        Some(self.outcome)
    }
}

/// The faults a disk has.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) all: Vec<Fault>,
    /// How many calls have met one.
    pub(super) met: u64,
}

impl Faults {
    /// `Ok(true)` if the call is to succeed without doing anything.
    pub(super) fn meet(&mut self, verb: Verb, path: &Path) -> Result<bool, Outcome> {
        let Some(outcome) = self.all.iter_mut().find_map(|fault| fault.meets(verb, path)) else {
            return Ok(false);
        };
        self.met += 1;
        match outcome {
            Outcome::Lie => Ok(true),
            Outcome::Panic => panic!("{verb:?} was told to"),
            outcome => Err(outcome),
        }
    }
}

impl Outcome {
    pub(super) fn error(self) -> io::Error {
        match self {
            Outcome::Error(code) | Outcome::Short(code) => io::Error::from_raw_os_error(code),
            Outcome::Lie | Outcome::Panic => io::ErrorKind::Other.into(),
        }
    }
}
