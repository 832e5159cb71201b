//! Who is in the log: which messages of which queues, held against what the views on disk say.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use longwire_proto::record::RecordView;
use longwire_proto::store::QueueOffset;

use super::{Damage, Gap, LostMessage};
use crate::consume_queue::{ENTRY_BYTES, Entry, FILE_ENTRIES};
use crate::disk::Disk;
use crate::open::Paths;
use crate::queue_files::{file_name, parse_file_name};
use crate::views::database::{Stored, read_copy};
use crate::views::system_topic::SystemRecord;
use crate::views::{CommittedOffset, Floors, Views, created_position};

/// Entries read from a consume queue at once.
const ENTRIES_PER_READ: u64 = 204;
/// Lines about views; more of them say nothing new.
const LINES_MAX: usize = 100;

/// Counts the messages of every queue while the log is walked.
#[derive(Debug)]
pub(crate) struct Census {
    disk: Arc<dyn Disk>,
    queues_dir: PathBuf,
    queues: BTreeMap<(String, u32), Seen>,
    /// What the log says.
    folded: Views,
    /// What the views on disk say, with what the log says beyond where they have come to.
    stored: Option<Stored>,
    /// Where that is.
    stored_end: u64,
    lines: Vec<String>,
}

/// What has been seen of one queue.
#[derive(Debug, Default)]
struct Seen {
    /// Where the first of its records stands.
    first: u64,
    next: u64,
    gaps: Vec<(u64, u64)>,
    wrong_entries: u64,
    /// Records from this position on, and offsets up to this one, are in the consume queue's files.
    noted: (u64, u64),
    /// Entries of the consume queue's file from this offset on.
    entries: (u64, Vec<u8>),
}

impl Census {
    /// A census of a log that begins at a position.
    pub(crate) fn new(disk: Arc<dyn Disk>, paths: &Paths, log_begins: u64) -> Census {
        let mut lines = Vec::new();
        let mut stored = match read_copy(&*disk, &paths.views) {
            Ok(stored) => stored,
            Err(error) => {
                lines.push(format!("{}: {error}", paths.views.display()));
                None
            }
        };
        let mut folded = Views::default();
        if log_begins > 0 {
            folded.begin_anew();
            let unwritten = stored.as_mut().filter(|stored| stored.views.folded == 0);
            unwritten.into_iter().for_each(|stored| stored.views.begin_anew());
        }
        Census {
            disk,
            queues_dir: paths.queues.clone(),
            queues: BTreeMap::new(),
            folded,
            stored_end: stored.as_ref().map_or(0, |stored| stored.views.folded),
            stored,
            lines,
        }
    }

    /// Where the log began, as far as the views on disk tell.
    pub(crate) fn log_began(&self) -> Option<u64> {
        self.stored.as_ref().map(|stored| stored.first_position)
    }

    /// A whole record of the log, the next one.
    pub(crate) fn saw(&mut self, record: &RecordView<'_>) {
        let end = record.position() + record.size() as u64;
        if let Some(system) = SystemRecord::read(record) {
            if let Some(stored) = &mut self.stored {
                stored.views.fold(system.clone(), record.position(), end);
            }
            self.folded.fold(system, record.position(), end);
        }
        let (topic, queue, offset) = (record.topic(), record.queue(), record.offset());
        let key = (topic.to_owned(), queue);
        let first = !self.queues.contains_key(&key);
        let stored = self.stored.as_ref();
        let seen = self.queues.entry(key).or_insert_with(|| Seen {
            first: record.position(),
            noted: stored.and_then(|stored| noted(stored, topic, queue)).unwrap_or_default(),
            ..Seen::default()
        });
        // A topic that was created again begins at 0 again.
        if !first && offset > seen.next {
            seen.gaps.push((seen.next, offset));
        }
        seen.next = offset + 1;
        if record.position() < seen.noted.0 || offset >= seen.noted.1 {
            return;
        }
        let at = self.queues_dir.join(topic);
        let entry = seen.entry(&*self.disk, &at, queue, offset);
        if entry.is_some_and(|entry| entry.position != record.position()) {
            seen.wrong_entries += 1;
        }
    }

    /// What the views say that the log alone does not say any more, as records that say it again, with
    /// where the queues go on whose last messages are among those that are lost. Call it at the log's
    /// end.
    pub(super) fn lost_system_records(&mut self, lost: &[Damage]) -> Vec<SystemRecord> {
        self.folded.end_anew();
        let Some(Stored { views, .. }) = &mut self.stored else { return Vec::new() };
        views.end_anew();
        for (name, topic) in &mut self.folded.topics {
            let queues = (name.to_string(), 0)..=(name.to_string(), u32::MAX);
            let first = self.queues.range(queues).map(|(_, seen)| seen.first).min();
            // Where a log without its beginning does not tell when a topic was created, it counts as older.
            // That makes no difference but to records in between.
            if let Some(stored) = views.topics.get(name)
                && created_position(topic) < created_position(stored)
                && first.is_none_or(|first| first >= created_position(stored))
            {
                topic.value.created_position = Some(created_position(stored));
            }
        }
        let mut floors = Floors::new();
        for message in lost.iter().flat_map(|damage| &damage.messages) {
            let LostMessage { topic, queue, offset, position } = message;
            let next = self.queues.get(&(topic.clone(), *queue)).map_or(0, |seen| seen.next);
            let Some((name, view)) = views.topics.get_key_value(topic.as_str()) else { continue };
            if *offset >= next && *position >= created_position(view) {
                let floor = QueueOffset { queue: *queue, offset: offset + 1 };
                floors.entry((name.clone(), created_position(view))).or_default().push(floor);
            }
        }
        views.changes_from(&self.folded, &floors)
    }

    /// The messages whose records stood in a stretch of the log, by the consume queues on disk.
    pub(crate) fn messages_at(&self, stretch: Range<u64>) -> Vec<LostMessage> {
        let mut messages = Vec::new();
        for topic in self.disk.list(&self.queues_dir).unwrap_or_default() {
            let dir = self.queues_dir.join(&topic);
            let names = self.disk.list(&dir).unwrap_or_default();
            for (name, (queue, base)) in names.iter().filter_map(|n| Some((n, parse_file_name(n)?)))
            {
                let entries = self.entries_at(&dir.join(name), &stretch).unwrap_or_default();
                messages.extend(entries.into_iter().map(|(number, position)| LostMessage {
                    topic: topic.clone(),
                    queue,
                    offset: base / ENTRY_BYTES + number,
                    position,
                }));
            }
        }
        messages.sort_by_key(|message| message.position);
        messages
    }

    /// The entries of a file that lead into a stretch of the log: their numbers in the file, and where
    /// they lead.
    fn entries_at(&self, path: &Path, stretch: &Range<u64>) -> io::Result<Vec<(u64, u64)>> {
        let file = self.disk.open_readonly(path)?;
        let entry = |number: u64| {
            let mut bytes = [0; ENTRY_BYTES as usize];
            let read = file.read_at(&mut bytes, number * ENTRY_BYTES)?;
            Ok::<_, io::Error>((read == bytes.len()).then(|| Entry::decode(&bytes)))
        };
        let (mut low, mut high) = (0, file.bytes()? / ENTRY_BYTES);
        while low < high {
            let middle = low + (high - low) / 2;
            match entry(middle)? {
                Some(entry) if entry.position < stretch.start => low = middle + 1,
                _ => high = middle,
            }
        }
        let mut found = Vec::new();
        while let Some(entry) = entry(low)?.filter(|entry| stretch.contains(&entry.position)) {
            if entry.size > 0 {
                found.push((low, entry.position));
            }
            low += 1;
        }
        Ok(found)
    }

    /// Offsets that are missing, and what is wrong with the views.
    pub(crate) fn finish(mut self, end: u64) -> (Vec<Gap>, Vec<String>) {
        self.compare_maps(end);
        self.compare_files();
        let mut gaps = Vec::new();
        for ((topic, queue), seen) in self.queues {
            if seen.wrong_entries > 0 {
                let wrong = seen.wrong_entries;
                self.lines
                    .push(format!("consume queue {topic}/{queue}: {wrong} entries are wrong"));
            }
            let gone = |&(first, end): &(u64, u64)| Gap { topic: topic.clone(), queue, first, end };
            gaps.extend(seen.gaps.iter().map(gone));
        }
        self.lines.truncate(LINES_MAX);
        (gaps, self.lines)
    }

    fn compare_maps(&mut self, end: u64) {
        let Some(Stored { views, .. }) = &self.stored else { return };
        if self.stored_end > end {
            let known = self.stored_end;
            self.lines.push(format!("views.redb knows the log up to {known}, it ends at {end}"));
            return;
        }
        let topics = views.topics.keys().eq(self.folded.topics.keys());
        let committed = |views: &Views| {
            let groups = views.groups.keys();
            groups.map(|group| (group.clone(), sorted(views.committed(group)))).collect::<Vec<_>>()
        };
        if !topics {
            self.lines.push("views.redb: the topics are not those of the log".into());
        }
        if committed(views) != committed(&self.folded) {
            self.lines.push("views.redb: the committed offsets are not those of the log".into());
        }
    }

    fn compare_files(&mut self) {
        let Some(Stored { queue_files, .. }) = &self.stored else { return };
        for ((topic, _, queue), files) in queue_files {
            for noted in files {
                let path = self
                    .queues_dir
                    .join(&**topic)
                    .join(file_name(*queue, noted.base * ENTRY_BYTES));
                let mut bytes = vec![0; noted.bytes() as usize];
                let read = self.disk.open_readonly(&path).and_then(|f| f.read_at(&mut bytes, 0));
                let what = match read {
                    Err(error) => error.to_string(),
                    Ok(read) if read < bytes.len() => "it is too short".into(),
                    Ok(_) if crc32fast::hash(&bytes) != noted.crc => "its checksum is wrong".into(),
                    Ok(_) => continue,
                };
                self.lines.push(format!("{}: {what}", path.display()));
            }
        }
    }
}

fn sorted(mut offsets: Vec<CommittedOffset>) -> Vec<CommittedOffset> {
    offsets.sort_by(|a, b| (&a.topic, a.queue).cmp(&(&b.topic, b.queue)));
    offsets
}

/// Where the records begin that the files of a queue have, and the offset at which those end, by the
/// last checkpoint. What lies behind in the files, the next start cuts off.
fn noted(stored: &Stored, topic: &str, queue: u32) -> Option<(u64, u64)> {
    let created = stored.views.topics.get(topic).map_or(0, created_position);
    let last = stored.queue_files.get(&(topic.into(), created, queue))?.last()?;
    Some((created, last.base + last.bytes() / ENTRY_BYTES))
}

impl Seen {
    /// The entry of an offset in the consume queue's file, if there is one.
    fn entry(
        &mut self,
        disk: &dyn Disk,
        topic_dir: &Path,
        queue: u32,
        offset: u64,
    ) -> Option<Entry> {
        let (from, bytes) = &self.entries;
        let known = *from..from + bytes.len() as u64 / ENTRY_BYTES;
        if !known.contains(&offset) {
            let base = offset - offset % FILE_ENTRIES;
            let path = topic_dir.join(file_name(queue, base * ENTRY_BYTES));
            let file = disk.open_readonly(&path).ok()?;
            let count = ENTRIES_PER_READ.min(base + FILE_ENTRIES - offset);
            let mut bytes = vec![0; (count * ENTRY_BYTES) as usize];
            let read = file.read_at(&mut bytes, (offset - base) * ENTRY_BYTES).ok()?;
            bytes.truncate(read - read % ENTRY_BYTES as usize);
            self.entries = (offset, bytes);
        }
        let (from, bytes) = &self.entries;
        let at = ((offset - from) * ENTRY_BYTES) as usize;
        bytes.get(at..)?.first_chunk().map(Entry::decode)
    }
}
