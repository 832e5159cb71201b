//! Where the map views are kept between two starts: an embedded transactional store (redb).
//!
//! A checkpoint is one transaction: the changed entries, the ends of the consume queues, and the
//! position they all have reached. So a crash can never leave them apart. The file can be deleted at
//! any time; the views are then folded again from the log.

use std::collections::HashMap;
use std::io;
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longwire_proto::store::{GroupRecord, TopicRecord};
use parking_lot::Mutex;
use prost::Message;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend};
use redb::{TableDefinition, WriteTransaction};

use super::{At, Changes, GroupView, Views, created_position};
use crate::disk::{Disk, DiskFile, read_exact_at};
use crate::queue_sums::QueueFile;

/// Name to number: the version of this format, and the positions that have been reached.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Topic to (position of its record, `TopicRecord`).
const TOPICS: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("topics");
/// Group to (position of its record, `GroupRecord`); empty where it came into being by a commit.
const GROUPS: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("groups");
/// (Group, topic, queue) to (position of the record, offset).
const OFFSETS: TableDefinition<(&str, &str, u32), (u64, u64)> = TableDefinition::new("offsets");
/// (Topic, queue, offset of the first entry) to (position where the topic was created, one past the
/// offset of the last entry, CRC-32 of the bytes) of a consume queue's file.
const QUEUE_FILES: TableDefinition<(&str, u32, u64), (u64, u64, u32)> =
    TableDefinition::new("queue_files");

const VERSION: u64 = 2;
const CACHE_BYTES: usize = 4 << 20;

/// The files of one consume queue, as a checkpoint notes them.
#[derive(Debug)]
pub(crate) struct NotedQueue {
    pub(crate) topic: Arc<str>,
    /// Tells topics of the same name apart.
    pub(crate) created_position: u64,
    pub(crate) queue: u32,
    pub(crate) files: Vec<QueueFile>,
}

/// The files of consume queues, by topic, the position where that was created, and queue.
pub(crate) type NotedFiles = HashMap<(Arc<str>, u64, u32), Vec<QueueFile>>;

#[derive(Debug)]
pub(crate) struct ViewDatabase {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Open(Database),
    /// After a failed write: redb refuses everything then until it is opened again.
    Failed,
    Closed,
}

/// What the database holds.
#[derive(Debug)]
pub(crate) struct Stored {
    /// Where the log began.
    pub(crate) first_position: u64,
    pub(crate) views: Views,
    /// The consume queues on disk have every record below.
    pub(crate) dispatched: u64,
    pub(crate) queue_files: NotedFiles,
}

impl Stored {
    /// What a database says that has never been written.
    pub(crate) fn nothing() -> Stored {
        Stored {
            first_position: u64::MAX,
            views: Views::default(),
            dispatched: 0,
            queue_files: NotedFiles::new(),
        }
    }
}

impl ViewDatabase {
    /// Opens the database and reads all of it. One that cannot be read is made anew: the log has
    /// everything that was in it. A sync that fails is nothing to go on after.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        path: &Path,
    ) -> Result<(ViewDatabase, Stored), redb::Error> {
        let (stored, database) = match open_checked(&*disk, path) {
            Ok(opened) => opened,
            Err(error) if is_failed_sync(&error) => return Err(error),
            Err(error) => {
                let path_shown = path.display();
                tracing::warn!(path = %path_shown, %error, "the views cannot be read; rebuilding");
                disk.remove(path).map_err(redb::Error::Io)?;
                let (_, database) = open_checked(&*disk, path)?;
                (Stored::nothing(), database)
            }
        };
        let (path, state) = (path.to_owned(), Mutex::new(State::Open(database)));
        Ok((ViewDatabase { disk, path, state }, stored))
    }

    /// Writes changed entries and the positions they bring map views and consume queues to, in one
    /// durable transaction.
    /// A failed call has changed nothing and can be made again.
    pub(crate) fn checkpoint(
        &self,
        first_position: u64,
        views: &Views,
        changes: &Changes,
        dispatched: u64,
        queues: &[NotedQueue],
    ) -> Result<(), redb::Error> {
        self.write(|transaction| {
            let mut meta = transaction.open_table(META)?;
            meta.insert("version", VERSION)?;
            meta.insert("first", first_position)?;
            meta.insert("folded", views.folded.max(dispatched))?;
            meta.insert("dispatched", dispatched)?;
            write_queue_files(transaction, queues)?;
            // Takes out the files of topics that were deleted since those were noted.
            write_topics(transaction, views, changes)?;
            write_groups(transaction, views, changes)?;
            write_offsets(transaction, views, changes)
        })
    }

    /// Empties the database, for a rebuild from the log.
    pub(crate) fn clear(&self) -> Result<(), redb::Error> {
        self.write(|transaction| {
            transaction.delete_table(TOPICS)?;
            transaction.delete_table(GROUPS)?;
            transaction.delete_table(OFFSETS)?;
            transaction.delete_table(QUEUE_FILES)?;
            transaction.delete_table(META)?;
            make_tables(transaction)
        })
    }

    fn write(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), redb::Error> {
        let mut state = self.state.lock();
        let database = match std::mem::replace(&mut *state, State::Failed) {
            State::Open(database) => database,
            State::Failed => open(&*self.disk, &self.path)?,
            State::Closed => {
                *state = State::Closed;
                return Err(redb::Error::Io(io::Error::other("the views are closed")));
            }
        };
        let transaction = database.begin_write()?;
        change(&transaction)?;
        transaction.commit()?;
        *state = State::Open(database);
        Ok(())
    }

    /// Gives the file back: redb writes to it once more when its database is dropped.
    pub(crate) fn close(&self) {
        *self.state.lock() = State::Closed;
    }
}

fn open(disk: &dyn Disk, path: &Path) -> Result<Database, redb::Error> {
    let file = disk.open_or_create(path).map_err(redb::Error::Io)?;
    let backend = Backend { file, path: path.to_owned() };
    Ok(Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)?)
}

/// Reads a database without changing its file; `None` if there is none.
pub(crate) fn read_copy(disk: &dyn Disk, path: &Path) -> Result<Option<Stored>, redb::Error> {
    let file = match disk.open_readonly(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(redb::Error::Io(error)),
    };
    let mut bytes = vec![0; file.bytes()? as usize];
    read_exact_at(&*file, &mut bytes, 0)?;
    let (stored, _) = checked(|| {
        let copy = InMemoryBackend::new();
        copy.set_len(bytes.len() as u64)?;
        copy.write(0, &bytes)?;
        Ok(Database::builder().create_with_backend(copy)?)
    })?;
    Ok(Some(stored))
}

fn open_checked(disk: &dyn Disk, path: &Path) -> Result<(Stored, Database), redb::Error> {
    checked(|| open(disk, path))
}

/// Opens a database, looks at every page of it, and reads all of it.
///
/// A file that is not what was written can take redb by surprise; that is damage like any other. The
/// look comes first: a table whose name is damaged must not be made anew, and the file whole again.
fn checked(
    open: impl FnOnce() -> Result<Database, redb::Error>,
) -> Result<(Stored, Database), redb::Error> {
    let damaged = |what: &str| redb::Error::Corrupted(what.to_owned());
    let opened = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        let mut database = open()?;
        if !database.check_integrity()? {
            return Err(damaged("a checksum does not match"));
        }
        let transaction = database.begin_write()?;
        make_tables(&transaction)?;
        transaction.commit()?;
        Ok((read(&database)?, database))
    }));
    opened.unwrap_or_else(|_| Err(damaged("its structure makes no sense")))
}

fn make_tables(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(META)?;
    transaction.open_table(TOPICS)?;
    transaction.open_table(GROUPS)?;
    transaction.open_table(OFFSETS)?;
    transaction.open_table(QUEUE_FILES)?;
    Ok(())
}

/// The error as an I/O error, which keeps its kind.
pub(crate) fn io_error(error: redb::Error) -> io::Error {
    match error {
        redb::Error::Io(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

fn read(database: &Database) -> Result<Stored, redb::Error> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let version = meta.get("version")?.map_or(VERSION, |v| v.value());
    if version != VERSION {
        return Err(redb::Error::Corrupted(format!("view version {version} is not {VERSION}")));
    }
    let first_position = meta.get("first")?.map_or(u64::MAX, |p| p.value());
    let folded = meta.get("folded")?.map_or(0, |p| p.value());
    let dispatched = meta.get("dispatched")?.map_or(0, |p| p.value());
    let mut views = Views { folded, ..Views::default() };
    for row in transaction.open_table(TOPICS)?.iter()? {
        let (name, value) = row?;
        let (position, record) = value.value();
        let value = TopicRecord::decode(record).map_err(corrupted)?;
        views.topics.insert(name.value().into(), At { value, position });
    }
    for row in transaction.open_table(GROUPS)?.iter()? {
        let (name, value) = row?;
        let (position, record) = value.value();
        let record = match record {
            [] => None,
            _ => Some(GroupRecord::decode(record).map_err(corrupted)?),
        };
        let record = record.map(|value| At { value, position });
        views.groups.insert(name.value().into(), GroupView { record, ..GroupView::default() });
    }
    for row in transaction.open_table(OFFSETS)?.iter()? {
        let (key, value) = row?;
        let ((group, topic, queue), (position, offset)) = (key.value(), value.value());
        let view = views.groups.entry(group.into()).or_default();
        let queues = view.offsets.entry(topic.into()).or_default();
        queues.insert(queue, At { value: offset, position });
    }
    let mut queue_files = NotedFiles::new();
    for row in transaction.open_table(QUEUE_FILES)?.iter()? {
        let (key, value) = row?;
        let ((topic, queue, base), (created, end, crc)) = (key.value(), value.value());
        let files = queue_files.entry((topic.into(), created, queue)).or_default();
        files.push(QueueFile { base, end, crc });
    }
    Ok(Stored { first_position, views, dispatched, queue_files })
}

fn write_topics(
    transaction: &WriteTransaction,
    views: &Views,
    changes: &Changes,
) -> Result<(), redb::Error> {
    let mut topics = transaction.open_table(TOPICS)?;
    let mut files = transaction.open_table(QUEUE_FILES)?;
    for name in &changes.topics {
        let topic = views.topics.get(name);
        match topic {
            Some(At { value, position }) => {
                topics.insert(&**name, (*position, &value.encode_to_vec()[..]))?;
            }
            None => {
                topics.remove(&**name)?;
            }
        }
        let created = topic.map(created_position);
        let all = (&**name, 0, 0)..=(&**name, u32::MAX, u64::MAX);
        files.retain_in(all, |_, (of, _, _)| Some(of) == created)?;
    }
    Ok(())
}

fn write_groups(
    transaction: &WriteTransaction,
    views: &Views,
    changes: &Changes,
) -> Result<(), redb::Error> {
    let mut groups = transaction.open_table(GROUPS)?;
    for name in &changes.groups {
        match views.groups.get(name).map(|view| &view.record) {
            Some(Some(At { value, position })) => {
                groups.insert(&**name, (*position, &value.encode_to_vec()[..]))?
            }
            Some(None) => groups.insert(&**name, (0, &[][..]))?,
            None => groups.remove(&**name)?,
        };
    }
    Ok(())
}

fn write_offsets(
    transaction: &WriteTransaction,
    views: &Views,
    changes: &Changes,
) -> Result<(), redb::Error> {
    let mut offsets = transaction.open_table(OFFSETS)?;
    for (group, topic) in &changes.offsets {
        let all = (&**group, &**topic, 0)..=(&**group, &**topic, u32::MAX);
        match views.groups.get(group).and_then(|view| view.offsets.get(topic)) {
            Some(queues) => {
                // Of a topic or a group of before, of the same name.
                offsets.retain_in(all, |(_, _, queue), _| queues.contains_key(&queue))?;
                for (&queue, at) in queues {
                    offsets.insert((&**group, &**topic, queue), (at.position, at.value))?;
                }
            }
            None => offsets.retain_in(all, |_, _| false)?,
        }
    }
    Ok(())
}

fn write_queue_files(
    transaction: &WriteTransaction,
    queues: &[NotedQueue],
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(QUEUE_FILES)?;
    for NotedQueue { topic, created_position, queue, files } in queues {
        let all = (&**topic, *queue, 0)..=(&**topic, *queue, u64::MAX);
        let noted = |base| files.iter().any(|file| file.base == base);
        table.retain_in(all, |(_, _, base), _| noted(base))?;
        for QueueFile { base, end, crc } in files {
            table.insert((&**topic, *queue, *base), (*created_position, *end, *crc))?;
        }
    }
    Ok(())
}

fn is_failed_sync(error: &redb::Error) -> bool {
    let redb::Error::Io(error) = error else { return false };
    error.get_ref().is_some_and(|error| error.is::<FailedSync>())
}

fn corrupted(error: prost::DecodeError) -> redb::Error {
    redb::Error::Corrupted(error.to_string())
}

/// A sync that failed: what it was to make durable may be gone, and another sync would not tell.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot sync: {error}", path.display())]
struct FailedSync {
    path: PathBuf,
    error: io::Error,
}

/// redb's file calls, through the one door all of them go through.
#[derive(Debug)]
struct Backend {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
}

impl Backend {
    fn error(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> Result<u64, io::Error> {
        self.file.bytes().map_err(|e| self.error(e))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        read_exact_at(&*self.file, out, offset).map_err(|e| self.error(e))
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.file.set_bytes(len).map_err(|e| self.error(e))
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        self.file.sync().map_err(|error| {
            io::Error::new(error.kind(), FailedSync { path: self.path.clone(), error })
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.file.write_all_at(&mut [io::IoSlice::new(data)], offset).map_err(|e| self.error(e))
    }
}
