//! Opening a store: lock, checkpoint, log, views, and only then threads.
//!
//! ```text
//!  {dir}/lock            locked while a process has the store open; its pid
//!  {dir}/checkpoint      how far the log is durable
//!  {dir}/commitlog/      the segments: the only source of truth
//!  {dir}/consumequeue/   a view: one folder for each topic
//!  {dir}/reserve         space that a full disk can be made room with
//!  {dir}/views.redb      a view: topics, groups, committed offsets
//! ```

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use parking_lot::Mutex;

use crate::appender::{Appender, now_ms};
use crate::checkpoint::{Checkpoint, CheckpointFile};
use crate::commit_log::CommitLog;
use crate::config::StoreConfig;
use crate::disk::{Disk, DiskLock, RealDisk};
use crate::dispatcher::{Dispatcher, UnreadableRecord, oldest_ms};
use crate::error::{FileError, OpenError};
use crate::flusher::Flusher;
use crate::housekeeper::Housekeeper;
use crate::marks::Marks;
use crate::queue_files::FileCache;
use crate::recovery::{RecoveredLog, recover};
use crate::reserve::Reserve;
use crate::retention::{Clock, Retention, trim_topics};
use crate::segment::Segment;
use crate::segment_supply::SegmentSupply;
use crate::store::Store;
use crate::topics::Topics;
use crate::views::database::{Stored, ViewDatabase};

/// Where the files of a store are.
#[derive(Debug)]
pub(crate) struct Paths {
    pub(crate) dir: PathBuf,
    pub(crate) lock: PathBuf,
    pub(crate) checkpoint: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) queues: PathBuf,
    pub(crate) views: PathBuf,
    pub(crate) reserve: PathBuf,
}

impl Paths {
    pub(crate) fn new(dir: &Path) -> Paths {
        Paths {
            dir: dir.to_owned(),
            lock: dir.join("lock"),
            checkpoint: dir.join("checkpoint"),
            log: dir.join("commitlog"),
            queues: dir.join("consumequeue"),
            views: dir.join("views.redb"),
            reserve: dir.join("reserve"),
        }
    }
}

impl Store {
    /// Opens the store in the folder of `config`, or makes one. Blocks, for as long as the scan of
    /// the log takes if it was not closed.
    pub fn open(config: StoreConfig) -> Result<Arc<Store>, OpenError> {
        Self::open_on(Arc::new(RealDisk), config)
    }

    /// As [`open`](Self::open), on a given disk.
    pub fn open_on(disk: Arc<dyn Disk>, config: StoreConfig) -> Result<Arc<Store>, OpenError> {
        config.check().map_err(OpenError::Config)?;
        let began = Instant::now();
        let paths = Paths::new(&config.dir);
        for dir in [&paths.dir, &paths.log, &paths.queues] {
            create_durably(&*disk, dir)?;
        }
        let lock = take_lock(&*disk, &paths)?;
        let (mut checkpoint_file, known) = CheckpointFile::open(&*disk, &paths.checkpoint)?;
        if known.checkpoint.is_none() {
            // A start that ended before this may have made the folder.
            sync_parent(&*disk, &paths.dir)?;
        }
        // What the scan accepts may so far be only in the page cache a killed process left behind.
        let durable = known.checkpoint.unwrap_or_default().durable;
        let recovered = recover(&*disk, &paths.log, &config, &known).and_then(|recovered| {
            sync_from(&recovered.segments, durable).map_err(FileError::on("sync", &paths.log))?;
            Ok(recovered)
        });
        if let Err(OpenError::File(_)) = recovered {
            // A failed sync is told once: the next one will go well, whatever became of the pages.
            let _ = checkpoint_file.flush_mark().write_failure(durable);
        }
        let RecoveredLog { segments, end, newest_ms, checked_from } = recovered?;
        checkpoint_file
            .write_both(Checkpoint { clean: false, durable: end, newest_ms })
            .map_err(FileError::on("write", &paths.checkpoint))?;
        disk.sync_dir(&paths.dir).map_err(FileError::on("sync", &paths.dir))?;

        let newest = set_times(&segments, newest_ms);
        let log = Arc::new(CommitLog::new(paths.log.clone(), segments));
        let (database, dispatcher) = open_views(&disk, &paths, log.clone(), checked_from..end)?;
        let marks = dispatcher.marks.clone();
        let reserve = Reserve::new(disk.clone(), paths.reserve.clone(), config.segment_bytes);
        reserve.fill().map_err(FileError::on("reserve space in", &paths.reserve))?;
        let supply = Arc::new(SegmentSupply::new(disk.clone(), paths.log, &config, newest.clone()));
        let appender = Appender::new(&config, log.clone(), newest, supply.clone(), marks.clone());
        let store = Arc::new(Store {
            appender: Arc::new(appender),
            supply: supply.clone(),
            flusher: Arc::new(Flusher {
                log: log.clone(),
                marks: marks.clone(),
                append_path: config.append_path,
                flush_interval: config.flush_interval,
                mark: checkpoint_file.flush_mark(),
                supply,
                syncs: AtomicU64::new(0),
            }),
            housekeeper: Arc::new(Housekeeper {
                disk,
                log: log.clone(),
                marks: marks.clone(),
                dispatcher: dispatcher.clone(),
                views: dispatcher.views.clone(),
                database,
                reserve,
                checkpoint: Mutex::new(checkpoint_file),
                retention: Retention {
                    age: config.retention_age,
                    bytes: config.retention_bytes,
                    clock: Mutex::new(Clock::at_start()),
                    overtaken: Mutex::default(),
                    leaving: Mutex::default(),
                },
                checkpoint_interval: config.checkpoint_interval,
                checkpoint_bytes: config.checkpoint_bytes,
                retention_interval: config.retention_check_interval,
            }),
            topics: dispatcher.topics.clone(),
            views: dispatcher.views.clone(),
            dispatcher,
            log,
            marks,
            threads: Mutex::default(),
            changing: Mutex::default(),
            system: Mutex::default(),
            lock: Mutex::new(Some(lock)),
        });
        store.start().map_err(FileError::on("start the threads of", &paths.dir))?;
        let (millis, topics) = (began.elapsed().as_millis() as u64, store.topics.all().len());
        tracing::info!(end, topics, millis, "opened the store");
        Ok(store)
    }
}

/// Makes a folder whose name survives a power cut.
fn create_durably(disk: &dyn Disk, dir: &Path) -> Result<(), FileError> {
    let made = disk.create_dir(dir).map_err(|error| match error.kind() {
        // As the system puts it, something would be there that should be.
        io::ErrorKind::AlreadyExists => io::Error::new(error.kind(), "it is not a folder"),
        _ => error,
    });
    let made = made.map_err(FileError::on("create the folder", dir))?;
    made.iter().try_for_each(|dir| sync_parent(disk, dir))
}

fn sync_parent(disk: &dyn Disk, path: &Path) -> Result<(), FileError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    disk.sync_dir(parent).map_err(FileError::on("sync", parent))
}

fn take_lock(disk: &dyn Disk, paths: &Paths) -> Result<DiskLock, OpenError> {
    disk.lock(&paths.lock).map_err(|error| locked(disk, paths, error))
}

/// Why the lock cannot be had, and who has it.
pub(crate) fn locked(disk: &dyn Disk, paths: &Paths, error: io::Error) -> OpenError {
    if error.kind() != io::ErrorKind::WouldBlock {
        return FileError::on("lock", &paths.lock)(error).into();
    }
    let mut text = [0; 32];
    let read = disk.open_readonly(&paths.lock).and_then(|file| file.read_at(&mut text, 0));
    let pid =
        read.ok().and_then(|read| std::str::from_utf8(&text[..read]).ok()?.trim().parse().ok());
    OpenError::Locked { dir: paths.dir.clone(), pid }
}

fn sync_from(segments: &[Arc<Segment>], durable: u64) -> io::Result<()> {
    let mut later = segments.iter().filter(|segment| segment.filled_end() > durable);
    later.try_for_each(|segment| segment.file().sync())
}

/// Gives every segment its newest time: that of the next one's first record, which is not earlier.
/// Returns the newest segment.
fn set_times(segments: &[Arc<Segment>], newest_ms: i64) -> Arc<Segment> {
    for pair in segments.windows(2) {
        pair[0].set_newest_ms(oldest_ms(&pair[1]).unwrap_or(newest_ms));
    }
    let newest = &segments[segments.len() - 1];
    newest.set_newest_ms(newest_ms);
    newest.clone()
}

/// Reads the views and brings them up to the end of the log; builds them anew where they cannot be
/// what they should be. Records below `checked` have yet to be checked where they are read.
fn open_views(
    disk: &Arc<dyn Disk>,
    paths: &Paths,
    log: Arc<CommitLog>,
    mut checked: Range<u64>,
) -> Result<(ViewDatabase, Arc<Dispatcher>), OpenError> {
    let end = checked.end;
    let failed = |error: redb::Error| OpenError::Views(error.to_string());
    let unreadable = |error| cannot_build(error, &log, &paths.dir);
    let (database, mut stored) = ViewDatabase::open(disk.clone(), &paths.views).map_err(failed)?;
    if stored.first_position < log.first_position() {
        return Err(begins_too_late(&log, stored.first_position));
    }
    if stored.views.folded > end {
        tracing::warn!("the views know more than the log; rebuilding them");
        database.clear().map_err(failed)?;
        stored = Stored::nothing();
    }
    let cache = FileCache::new(disk.clone());
    let mut open = |Stored { views, dispatched, queue_files, .. }| {
        let marks = Arc::new(Marks::new(end, dispatched.max(log.first_position())));
        let topics = Topics::new(paths.queues.clone(), cache.clone(), marks.clone());
        let dispatcher = Dispatcher::new(log.clone(), marks, topics, views);
        checked = dispatcher.fold_views(checked.clone())?;
        let whole = {
            let views = dispatcher.views.read();
            dispatcher.topics.open(&views, &queue_files)?
        };
        Ok((dispatcher, whole))
    };
    let (mut dispatcher, whole) = open(stored).map_err(unreadable)?;
    if !whole {
        tracing::warn!("consume queues are missing or damaged; building all views from the log");
        dispatcher.topics.remove_all().map_err(unreadable)?;
        database.clear().map_err(failed)?;
        (dispatcher, _) = open(Stored::nothing()).map_err(unreadable)?;
    }
    dispatcher.open_at(checked).map_err(unreadable)?;
    for queue in dispatcher.topics.all().iter().flat_map(|topic| topic.queues()) {
        queue.index.trim(log.first_position()).map_err(unreadable)?;
        queue.set_next_offset(queue.index.end());
    }
    for (name, view) in &dispatcher.views.read().topics {
        let Some(topic) = dispatcher.topics.get(name) else {
            continue;
        };
        for floor in &view.value.floors {
            if let Some(queue) = topic.queue(floor.queue) {
                queue.index.go_on_at(floor.offset);
                queue.set_next_offset(queue.next_offset().max(floor.offset));
            }
        }
    }
    trim_topics(&log, end, &dispatcher.topics, now_ms()).map_err(unreadable)?;
    Ok((database, Arc::new(dispatcher)))
}

/// Retention notes that a segment goes before it removes it.
fn begins_too_late(log: &CommitLog, position: u64) -> OpenError {
    OpenError::Corrupt {
        path: log.dir().join(Segment::file_name(position)),
        position,
        durable: Some(log.first_position()),
        reason: "the segment is missing".into(),
    }
}

/// Views cannot be built from a damaged record; it lies below the end of the log, so it counted.
fn cannot_build(error: io::Error, log: &CommitLog, dir: &Path) -> OpenError {
    let damaged = error.get_ref().and_then(|inner| inner.downcast_ref::<UnreadableRecord>());
    let segment = damaged.and_then(|record| log.find(record.position));
    match damaged.zip(segment) {
        Some((UnreadableRecord { position, reason }, segment)) => OpenError::Corrupt {
            path: segment.path().to_owned(),
            position: *position,
            durable: Some(segment.filled_end()),
            reason: reason.clone(),
        },
        None => FileError::on("build the views in", dir)(error).into(),
    }
}
