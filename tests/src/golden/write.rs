//! Makes golden stores, and keeps account of what goes into them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longwire_proto::record::{RecordDraft, sys_flag};
use longwire_storage::{AppendPath, CommittedOffset, Durability, RecordRun};
use longwire_storage::{Store, StoreConfig, TopicConfig, TopicUpdate};

use super::{Contents, EXPECTED, QueueContents, SEGMENT_BYTES, TopicContents};
use super::{config, copy_store, line};

/// Makes one store of each kind below a folder that must not exist.
pub fn write_stores(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir.parent().unwrap_or(dir))?;
    fs::create_dir(dir)?;
    write_closed(&dir.join("closed"), AppendPath::Pwrite)?;
    write_closed(&dir.join("closed-mapped"), AppendPath::Mapped)?;
    write_killed(&dir.join("killed"))?;
    write_torn(&dir.join("torn"))?;
    write_retained(&dir.join("retained"))
}

/// Everything a store can hold, and a clean stop.
fn write_closed(dir: &Path, append_path: AppendPath) -> io::Result<()> {
    let mut author = Author::open(StoreConfig { append_path, ..config(dir) })?;
    write_everything(&mut author)?;
    author.close()?;
    author.finish(dir)
}

/// The files as they are while the store is open: what a kill leaves behind. Some of it is behind the
/// last checkpoint, and the newest is written but not flushed.
fn write_killed(dir: &Path) -> io::Result<()> {
    let lived = tempfile::tempdir()?;
    let never = Duration::from_secs(3600);
    let mut author = Author::open(StoreConfig { flush_interval: never, ..config(lived.path()) })?;
    write_everything(&mut author)?;
    author.close()?;
    author.reopen(StoreConfig { flush_interval: never, ..config(lived.path()) })?;
    author.append_numbered("orders", 1, 40)?;
    author.commit("billing", &[("orders", 1, 60)])?;
    author.append_numbered("metrics", 0, 3)?;
    copy_store(lived.path(), dir)?;
    author.finish(dir)
}

/// As killed, and behind the end half a record, and further on stale bytes.
fn write_torn(dir: &Path) -> io::Result<()> {
    write_killed(dir)?;
    let end = {
        let opened = tempfile::tempdir()?;
        copy_store(dir, opened.path())?;
        let store = Store::open(config(opened.path())).map_err(io::Error::other)?;
        store.written().get()
    };
    let mut half = Vec::new();
    let draft = RecordDraft { topic: "orders", body: &[7; 300], ..RecordDraft::default() };
    draft.encode(&mut half).map_err(io::Error::other)?;
    half.truncate(half.len() / 2);
    let (base, at) = (end - end % SEGMENT_BYTES, end % SEGMENT_BYTES);
    let newest = dir.join(format!("commitlog/{base:020}"));
    let newest = OpenOptions::new().write(true).open(newest)?;
    newest.write_all_at(&half, at)?;
    newest.write_all_at(b"stale", at + 4 * half.len() as u64)
}

/// A store whose oldest segments are gone, with what they said carried forward.
fn write_retained(dir: &Path) -> io::Result<()> {
    let often = Duration::from_millis(10);
    let retain = StoreConfig {
        retention_bytes: Some(3 * SEGMENT_BYTES),
        retention_check_interval: often,
        ..config(dir)
    };
    let mut author = Author::open(config(dir))?;
    author.create("quiet", 1, Durability::Flush)?;
    author.append_numbered("quiet", 0, 3)?;
    author.create_group("idle")?;
    author.commit("idle", &[("quiet", 0, 2)])?;
    write_everything(&mut author)?;
    author.close()?;
    author.reopen(retain)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while author.store()?.stats().segments > 4 {
        if Instant::now() > deadline {
            return Err(io::Error::other("retention does not come"));
        }
        std::thread::sleep(often);
    }
    author.close()?;
    author.reopen(config(dir))?;
    author.forget_removed()?;
    author.close()?;
    author.finish(dir)
}

fn write_everything(author: &mut Author) -> io::Result<()> {
    author.create("orders", 2, Durability::Flush)?;
    author.create("metrics", 1, Durability::Write)?;
    author.create("dropped", 3, Durability::Flush)?;
    author.append_numbered("dropped", 2, 5)?;
    author.commit("billing", &[("orders", 0, 1), ("dropped", 2, 4)])?;
    author.append_forms("orders", 0)?;
    author.append_numbered("orders", 0, 150)?;
    author.append_numbered("orders", 1, 20)?;
    author.append_numbered("metrics", 0, 120)?;
    author.delete("dropped")?;
    author.grow("orders", 3)?;
    author.append_numbered("orders", 2, 10)?;
    // A second topic of the name begins empty.
    author.create("again", 1, Durability::Flush)?;
    author.append_numbered("again", 0, 4)?;
    author.delete("again")?;
    author.create("again", 1, Durability::Flush)?;
    author.append_numbered("again", 0, 2)?;
    author.create_group("audit")?;
    author.commit("gone", &[("orders", 0, 9)])?;
    author.delete_group("gone")?;
    author.commit("billing", &[("orders", 0, 100), ("orders", 1, 20), ("metrics", 0, 7)])
}

/// Writes to a store and notes what it wrote.
struct Author {
    store: Option<Arc<Store>>,
    contents: Contents,
}

impl Author {
    fn open(config: StoreConfig) -> io::Result<Author> {
        let mut author = Author { store: None, contents: Contents::default() };
        author.reopen(config)?;
        Ok(author)
    }

    fn reopen(&mut self, config: StoreConfig) -> io::Result<()> {
        // Some hosts have an IPv6 address, so some records the longer field for it.
        let store_host = SocketAddr::from(([10, 1, 2, 3], 7650));
        let config = StoreConfig { store_host, ..config };
        self.store = Some(Store::open(config).map_err(io::Error::other)?);
        Ok(())
    }

    fn store(&self) -> io::Result<&Arc<Store>> {
        self.store.as_ref().ok_or_else(|| io::Error::other("the store is closed"))
    }

    fn close(&mut self) -> io::Result<()> {
        self.store.take().map_or(Ok(()), |store| store.close().map_err(io::Error::other))
    }

    fn finish(&self, dir: &Path) -> io::Result<()> {
        // The process's number is nobody else's business.
        match fs::remove_file(dir.join("lock")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::File::create(dir.join(EXPECTED))?;
        serde_json::to_writer_pretty(&mut file, &self.contents)?;
        file.write_all(b"\n")
    }

    fn create(&mut self, name: &str, queues: u32, durability: Durability) -> io::Result<()> {
        let config = TopicConfig { durability, ..TopicConfig::new(name, queues) };
        self.store()?.create_topic(config).map_err(io::Error::other)?;
        let queues = vec![QueueContents::default(); queues as usize];
        let durability = format!("{durability:?}");
        self.contents.topics.insert(name.into(), TopicContents { durability, queues });
        Ok(())
    }

    fn grow(&mut self, name: &str, queues: u32) -> io::Result<()> {
        let update = TopicUpdate { queues: Some(queues), ..TopicUpdate::default() };
        self.store()?.update_topic(name, update).map_err(io::Error::other)?;
        if let Some(topic) = self.contents.topics.get_mut(name) {
            topic.queues.resize(queues as usize, QueueContents::default());
        }
        Ok(())
    }

    fn delete(&mut self, name: &str) -> io::Result<()> {
        self.store()?.delete_topic(name).map_err(io::Error::other)?;
        self.contents.topics.remove(name);
        for offsets in self.contents.groups.values_mut() {
            offsets.retain(|queue, _| queue.split('/').next() != Some(name));
        }
        Ok(())
    }

    fn append(&mut self, draft: &RecordDraft<'_>) -> io::Result<()> {
        let store = self.store()?.clone();
        let mut bytes = Vec::new();
        draft.encode(&mut bytes).map_err(io::Error::other)?;
        let queue = store.topic(draft.topic).and_then(|topic| topic.queue(draft.queue));
        let queue = queue.ok_or_else(|| io::Error::other("no such queue"))?;
        let mut run =
            RecordRun::check(draft.topic, draft.queue, &mut bytes).map_err(io::Error::other)?;
        let extents = store.append_blocking(&queue, &mut run).map_err(io::Error::other)?;
        let offset = extents.first().map_or(0, |extent| extent.offset);
        let topic = self.contents.topics.get_mut(draft.topic);
        if let Some(queue) = topic.and_then(|t| t.queues.get_mut(draft.queue as usize)) {
            // Sealed in place by the append: these are the bytes of the log.
            queue.records.push(line(&bytes, offset));
        }
        Ok(())
    }

    /// Bodies that tell which they are, of many sizes.
    fn append_numbered(&mut self, topic: &str, queue: u32, count: u32) -> io::Result<()> {
        for i in 0..count {
            let body: Vec<u8> = (0..i * 211 % 1500).map(|b| (b ^ i) as u8).collect();
            let (tag, keys) = (["", "paid", "späť"][i as usize % 3], format!("k{i}"));
            self.append(&RecordDraft {
                topic,
                queue,
                tag,
                keys: &keys,
                body: &body,
                born_timestamp_ms: 1_700_000_000_000 + i64::from(i),
                ..RecordDraft::default()
            })?;
        }
        Ok(())
    }

    /// Every form a record can have.
    fn append_forms(&mut self, topic: &str, queue: u32) -> io::Result<()> {
        let plain = RecordDraft { topic, queue, body: b"plain", ..RecordDraft::default() };
        let born_host = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 4711));
        let compressed = zlib(&[b'z'; 5000])?;
        let properties = [("region", "eu"), ("__SHARDINGKEY", "customer-7")];
        for draft in [
            plain,
            RecordDraft { body: b"", ..plain },
            RecordDraft { born_host, ..plain },
            RecordDraft { store_host_v6: true, ..plain },
            RecordDraft { born_host, store_host_v6: true, tag: "paid", keys: "a b", ..plain },
            RecordDraft { flag: -1, properties: &properties, ..plain },
            RecordDraft {
                body: &compressed,
                sys_flag: sys_flag::COMPRESSED | sys_flag::CODEC_ZLIB,
                ..plain
            },
            // Two of them do not fit one segment.
            RecordDraft { body: &[0xA5; 40_000], ..plain },
            RecordDraft { body: &[0x5A; 40_000], ..plain },
        ] {
            self.append(&draft)?;
        }
        Ok(())
    }

    fn create_group(&mut self, group: &str) -> io::Result<()> {
        self.store()?.create_group(group).map_err(io::Error::other)?;
        self.contents.groups.entry(group.into()).or_default();
        Ok(())
    }

    fn delete_group(&mut self, group: &str) -> io::Result<()> {
        let store = self.store()?;
        let end = store.delete_group(group).map_err(io::Error::other)?;
        store.flushed_blocking(end).map_err(io::Error::other)?;
        store.dispatched().wait(end).map_err(io::Error::other)?;
        self.contents.groups.remove(group);
        Ok(())
    }

    fn commit(&mut self, group: &str, offsets: &[(&str, u32, u64)]) -> io::Result<()> {
        let committed = offsets.iter().map(|&(topic, queue, offset)| {
            let topic = topic.into();
            CommittedOffset { topic, queue, offset }
        });
        let committed: Vec<_> = committed.collect();
        let store = self.store()?;
        let end = store.commit_offsets(group, &committed).map_err(io::Error::other)?;
        store.flushed_blocking(end).map_err(io::Error::other)?;
        store.dispatched().wait(end).map_err(io::Error::other)?;
        let known = self.contents.groups.entry(group.into()).or_default();
        for (topic, queue, offset) in offsets {
            known.insert(format!("{topic}/{queue}"), *offset);
        }
        Ok(())
    }

    /// Takes out of the account what retention has removed.
    fn forget_removed(&mut self) -> io::Result<()> {
        let store = self.store()?.clone();
        for (name, contents) in &mut self.contents.topics {
            let Some(topic) = store.topic(name) else { continue };
            for (queue, contents) in topic.queues().iter().zip(&mut contents.queues) {
                contents.first = queue.min_offset();
                contents.records.drain(..contents.first as usize);
            }
        }
        Ok(())
    }
}

fn zlib(body: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(body)?;
    encoder.finish()
}
