//! The records that are fetched: the same log for every arm, each with a copy of its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use longwire_client::{NewTopic, TopicDurability};
use longwire_proto::data::{self, request_header::Request, response_header::Response};
use longwire_proto::record::RecordDraft;
use longwire_tests::broker_process::{BrokerCommand, BrokerProcess};
use longwire_tests::frame_client::FrameClient;
use longwire_tests::{noise, page_cache};

use crate::matrix::{Arm, Layout};

/// Every record, with all its fields. A fetch of 64 KiB is one of 64 records.
pub(crate) const RECORD_BYTES: usize = 1024;

/// Has no records until somebody produces [one](crate::one_record) after the other.
pub(crate) const ONE_RECORD_TOPIC: &str = "one-record";

const SEGMENT: &str = "storage.segment_bytes=64MiB";
/// Runs of one produce request, and records of a contiguous one.
const BATCH: usize = 256;
/// A mixed queue has so many records in one piece, then so many interleaved ones.
const MIXED_RUN: usize = 128;
const MIXED_ROWS: usize = 64;
const MIXED_QUEUES: u32 = 10;
/// How many records the tail's fetches go round in. They are appended whenever a broker starts, for
/// what is known of the newest records only while they are.
const NEWEST_RECORDS: usize = 128;

/// How much of each layout there is, in MiB. What lies before the last 64 MiB does not count as tail
/// in the broker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) contiguous: usize,
    pub(crate) ten: usize,
    pub(crate) mixed: usize,
    pub(crate) thousand: usize,
    pub(crate) tail: usize,
}

pub(crate) const FULL: Sizes =
    Sizes { contiguous: 512, ten: 64, mixed: 96, thousand: 192, tail: 72 };
pub(crate) const QUICK: Sizes =
    Sizes { contiguous: 64, ten: 16, mixed: 24, thousand: 72, tail: 68 };

/// The records of one layout that are fetched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Records {
    pub(crate) topic: &'static str,
    queues: u64,
    /// Of each queue.
    first: u64,
    count: u64,
}

impl Records {
    /// How many fetches of `size` bytes there are, one behind the other.
    pub(crate) fn slots(&self, size: usize) -> u64 {
        self.queues * (self.count / per_fetch(size))
    }

    /// Queue and offset of one of them. Neighbours are of different queues.
    pub(crate) fn at(&self, slot: u64, size: usize) -> (u32, u64) {
        let (queue, nth) = (slot % self.queues, slot / self.queues);
        (queue as u32, self.first + nth * per_fetch(size))
    }
}

fn per_fetch(size: usize) -> u64 {
    (size / RECORD_BYTES).max(1) as u64
}

impl Sizes {
    /// A position in the log's last segment, roughly its end.
    pub(crate) fn end(&self) -> u64 {
        let mib = self.contiguous + self.ten + self.mixed + self.thousand + self.tail;
        (mib as u64) << 20
    }

    /// Where the history ends that a catch-up reader reads: the contiguous records come first.
    pub(crate) fn history_end(&self) -> u64 {
        (self.contiguous as u64) << 20
    }

    fn records(&self, layout: Layout) -> Records {
        let per_queue = |mib: usize, queues: usize| (mib * 1024 / queues) as u64;
        let all = |topic, queues: u64, count| Records { topic, queues, first: 0, count };
        match layout {
            Layout::Contiguous => all("contiguous", 1, per_queue(self.contiguous, 1)),
            Layout::Ten => all("ten", 10, per_queue(self.ten, 10)),
            Layout::Thousand => all("thousand", 1000, per_queue(self.thousand, 1000)),
            Layout::Mixed => {
                let periods = self.mixed * 1024 / (MIXED_RUN + MIXED_ROWS * MIXED_QUEUES as usize);
                all("mixed", 1, (periods * (MIXED_RUN + MIXED_ROWS)) as u64)
            }
            Layout::Tail => all("tail", 1, NEWEST_RECORDS as u64),
        }
    }
}

/// One arm's broker, and how to start it again.
#[derive(Debug)]
pub(crate) struct ArmBroker {
    pub(crate) arm: Arm,
    command: BrokerCommand,
    folder: PathBuf,
    running: Option<BrokerProcess>,
    /// Offset of the first of the records appended since the start.
    newest: u64,
}

impl ArmBroker {
    /// The broker, started where it does not run.
    pub(crate) fn running(&mut self) -> &BrokerProcess {
        let newest = &mut self.newest;
        self.running.get_or_insert_with(|| {
            let broker = self.command.start();
            *newest = Producer::new(&broker).run("tail", 0, NEWEST_RECORDS);
            broker
        })
    }

    /// The records of a layout; it must be running.
    pub(crate) fn records(&self, sizes: &Sizes, layout: Layout) -> Records {
        let records = sizes.records(layout);
        if layout == Layout::Tail { Records { first: self.newest, ..records } } else { records }
    }

    /// Restarts it with nothing of the log below `end` in the page cache; what share was still there.
    ///
    /// It must be down meanwhile: pages that are mapped cannot be evicted.
    pub(crate) fn restart_cold(&mut self, end: u64) -> io::Result<f64> {
        if let Some(broker) = self.running.take() {
            broker.stop();
        }
        let resident = evict(&self.folder, end)?;
        self.running();
        Ok(resident)
    }

    /// The folder of its store.
    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.clone()
    }
}

/// Makes the log, copies it for every arm, and prepares their brokers. With `sync`, it waits until the
/// copies are on disk, so that no write-back disturbs what is measured.
pub(crate) fn prepare(
    folder: &Path,
    sizes: &Sizes,
    setting: Option<&str>,
    sync: bool,
) -> io::Result<Vec<ArmBroker>> {
    let origin = folder.join("origin");
    let broker = command(&origin, Arm::Adaptive).start();
    fill(&broker, sizes);
    broker.stop();
    let mut arms = Vec::new();
    for arm in Arm::ALL {
        let folder = folder.join(arm.name());
        copy(&origin, &folder, sync)?;
        let mut command = command(&folder, arm);
        if let Some(setting) = setting {
            command = command.set(setting);
        }
        arms.push(ArmBroker { arm, command, folder, running: None, newest: 0 });
    }
    fs::remove_dir_all(&origin)?;
    Ok(arms)
}

fn command(folder: &Path, arm: Arm) -> BrokerCommand {
    let command = BrokerCommand::new(folder)
        .set(SEGMENT)
        .set(format!("transfer.mode={}", arm.name()))
        .set(format!("transfer.congestion_control={}", crate::CONGESTION_CONTROL));
    if arm == Arm::Adaptive { command } else { command.set("transfer.io_threads=0") }
}

fn fill(broker: &BrokerProcess, sizes: &Sizes) {
    let topics = [
        ("contiguous", 1),
        ("ten", 10),
        ("mixed", MIXED_QUEUES),
        ("thousand", 1000),
        ("tail", 1),
        (ONE_RECORD_TOPIC, 1),
    ];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = longwire_client::Client::connect(broker.control()).await.unwrap();
        for (topic, queues) in topics {
            let topic = NewTopic::new(topic).queues(queues).durability(TopicDurability::Write);
            client.admin().create_topic(topic).await.unwrap();
        }
    });
    let mut producer = Producer::new(broker);
    producer.run("contiguous", 0, sizes.contiguous * 1024);
    producer.rows("ten", 10, sizes.ten * 1024 / 10);
    for _ in 0..sizes.mixed * 1024 / (MIXED_RUN + MIXED_ROWS * MIXED_QUEUES as usize) {
        producer.run("mixed", 0, MIXED_RUN);
        producer.rows("mixed", MIXED_QUEUES, MIXED_ROWS);
    }
    producer.rows("thousand", 1000, sizes.thousand * 1024 / 1000);
    producer.run("tail", 0, sizes.tail * 1024);
}

/// Appends records in a given order, which the broker keeps: a request's runs follow each other.
struct Producer {
    client: FrameClient,
    body: Vec<u8>,
}

impl Producer {
    fn new(broker: &BrokerProcess) -> Producer {
        let client = FrameClient::connect(broker.addresses().data);
        Producer { client, body: noise(1, RECORD_BYTES) }
    }

    /// Records of one queue behind each other. Returns the offset of the first of the last batch.
    fn run(&mut self, topic: &str, queue: u32, count: usize) -> u64 {
        let mut offset = 0;
        for done in (0..count).step_by(BATCH) {
            let records = BATCH.min(count - done);
            let one = record(topic, queue, &self.body);
            offset = self.produce(topic, &[(queue, records)], one.repeat(records));
        }
        offset
    }

    /// Rows of one record of every queue.
    fn rows(&mut self, topic: &str, queues: u32, count: usize) {
        let all: Vec<u32> = (0..count).flat_map(|_| 0..queues).collect();
        for batch in all.chunks(BATCH) {
            let runs: Vec<(u32, usize)> = batch.iter().map(|queue| (*queue, 1)).collect();
            let body = batch.iter().flat_map(|queue| record(topic, *queue, &self.body)).collect();
            self.produce(topic, &runs, body);
        }
    }

    /// Returns the offset of the first record.
    fn produce(&mut self, topic: &str, runs: &[(u32, usize)], body: Vec<u8>) -> u64 {
        let run = |&(queue, records): &(u32, usize)| data::ProduceRun {
            topic: topic.into(),
            queue,
            bytes: (records * RECORD_BYTES) as u32,
        };
        let runs = runs.iter().map(run).collect();
        let request = data::ProduceRequest { durability: data::Durability::Write.into(), runs };
        let answer = self.client.call(Request::Produce(request), &body);
        let Response::Produce(answer) = answer else { panic!("not an answer: {answer:?}") };
        assert!(answer.results.iter().all(|result| result.code == 0), "{answer:?}");
        answer.results[0].extents[0].offset
    }
}

/// A record of exactly [`RECORD_BYTES`].
pub(crate) fn record(topic: &str, queue: u32, noise: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RECORD_BYTES);
    let draft = RecordDraft { topic, queue, ..RecordDraft::default() };
    let frame = draft.encode(&mut bytes).unwrap();
    bytes.clear();
    let body = &noise[..RECORD_BYTES - frame];
    assert_eq!(RecordDraft { body, ..draft }.encode(&mut bytes).unwrap(), RECORD_BYTES);
    bytes
}

fn copy(from: &Path, to: &Path, sync: bool) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to, sync)?;
        } else {
            fs::copy(entry.path(), &to)?;
            if sync {
                File::open(&to)?.sync_all()?;
            }
        }
    }
    Ok(())
}

/// Drops a store's segments that begin below position `end` from the page cache. Returns the share of
/// their bytes below it that are still there.
fn evict(folder: &Path, end: u64) -> io::Result<f64> {
    let (mut bytes, mut resident) = (0, 0);
    for entry in fs::read_dir(folder.join("commitlog"))? {
        let path = entry?.path();
        let name = path.file_name().and_then(OsStr::to_str);
        let position = name.and_then(|name| name.parse::<u64>().ok());
        let Some(wanted) =
            position.and_then(|position| end.checked_sub(position).filter(|&bytes| bytes > 0))
        else {
            continue;
        };
        let len = wanted.min(path.metadata()?.len()) as usize;
        page_cache::evict(&path)?;
        bytes += len;
        resident += page_cache::resident_bytes(&path, len)?;
    }
    Ok(resident as f64 / bytes.max(1) as f64)
}
