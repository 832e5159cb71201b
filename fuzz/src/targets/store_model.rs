//! A store against lists: append, read, roll, retention, kills, power cuts, restarts, failing calls.
//!
//! The first byte is how segments are written and whether checkpoints come by themselves; every further
//! step is a byte for what to do and up to two for how. A kill leaves what the page cache has, so
//! everything appended is there afterwards. After a power cut, or once a call has failed, at least
//! everything acknowledged is, and behind it nothing but more of the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use longwire_proto::record::{RecordDraft, RecordView};
use longwire_storage::disk::{CrashModel, Fault, FaultDisk, Outcome, Survives, Verb};
use longwire_storage::{
    AppendError, AppendPath, CommittedOffset, Durability, IndexRead, Queue, ReadError, RecordRun,
    SEGMENT_BYTES_MIN, Store, StoreConfig, TagFilter, TopicConfig,
};

use super::input::Input;

const STEPS_MAX: usize = 40;
const TOPICS: [(&str, Durability); 2] =
    [("flushed", Durability::Flush), ("written", Durability::Write)];
const QUEUES: usize = 2;
const GROUP: &str = "group";
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

pub(super) fn run(data: &[u8]) {
    let mut input = Input(data);
    let mode = input.byte();
    let mut model = Model::new(Mode { mapped: mode & 1 > 0, checkpoints: mode & 2 > 0 });
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        model.step(&mut input);
    }
    model.kill();
    model.compare();
}

/// What must be in one queue.
#[derive(Debug, Default)]
struct Lane {
    /// Numbers that the messages' bodies carry; the offset is the index.
    numbers: Vec<u64>,
    /// How many of them were acknowledged as durable.
    acked: usize,
    /// Retention has removed those before it.
    first: usize,
}

/// How the store is set up.
#[derive(Debug, Clone, Copy)]
struct Mode {
    mapped: bool,
    /// A checkpoint comes after a few appends.
    checkpoints: bool,
}

struct Model {
    mode: Mode,
    disk: FaultDisk,
    store: Arc<Store>,
    lanes: [[Lane; QUEUES]; TOPICS.len()],
    /// What the group may have committed: the last that was acknowledged, and those after it.
    committed: Vec<Option<u64>>,
    next_number: u64,
    /// A call may have failed since the store was opened.
    failing: bool,
    /// The power has been cut, and what was not durable is lost.
    lost: bool,
}

impl Model {
    fn new(mode: Mode) -> Model {
        let disk = FaultDisk::default();
        let store = Store::open_on(Arc::new(disk.clone()), mode.config());
        let store = store.expect("an empty disk can be opened");
        for (name, durability) in TOPICS {
            let topic = TopicConfig { durability, ..TopicConfig::new(name, QUEUES as u32) };
            store.create_topic(topic).expect("a topic can be made");
        }
        let (lanes, committed) = (Default::default(), vec![None]);
        let (next_number, failing, lost) = (0, false, false);
        Model { mode, disk, store, lanes, committed, next_number, failing, lost }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 11 {
            0..=2 => self.append(input),
            3 => self.flush(),
            4 => self.compare(),
            5 => self.restart(),
            6 => self.kill(),
            7 => self.commit(input),
            8 => self.fail(input),
            9 => self.retain(),
            _ => self.cut_power(input),
        }
    }

    fn queue(&self, topic: usize, queue: usize) -> Arc<Queue> {
        let topic = self.store.topic(TOPICS[topic].0).expect("topics stay");
        topic.queue(queue as u32).expect("queues stay")
    }

    fn append(&mut self, input: &mut Input<'_>) {
        let (choice, size) = (input.byte(), usize::from(input.byte()) * 16);
        let (topic, id) = (usize::from(choice) % TOPICS.len(), usize::from(choice >> 1) % QUEUES);
        let queue = self.queue(topic, id);
        let mut bytes = Vec::new();
        let numbers = self.next_number..self.next_number + 1 + u64::from(choice >> 4);
        for number in numbers.clone() {
            let body = [&number.to_be_bytes()[..], &vec![choice; size]].concat();
            let (topic, queue) = (TOPICS[topic].0, id as u32);
            let draft = RecordDraft { topic, queue, body: &body, ..RecordDraft::default() };
            draft.encode(&mut bytes).expect("it can be encoded");
        }
        self.next_number = numbers.end;
        let mut run = RecordRun::check(queue.topic(), id as u32, &mut bytes).expect("it is sound");
        let lane = &mut self.lanes[topic][id];
        match self.store.append_blocking(&queue, &mut run) {
            Ok(extents) => {
                assert_eq!(extents[0].offset, lane.numbers.len() as u64, "offsets are dense");
                lane.numbers.extend(numbers);
            }
            Err(error) => {
                assert!(self.failing, "{error}");
                if matches!(error, AppendError::Poisoned(_) | AppendError::Unfinished(_)) {
                    // Nobody knows what of it is in the log.
                    lane.numbers.extend(numbers);
                    self.kill();
                }
            }
        }
    }

    fn flush(&mut self) {
        let written = self.store.written().get();
        match self.store.flushed_blocking(written) {
            Ok(()) => {
                self.lanes.iter_mut().flatten().for_each(|lane| lane.acked = lane.numbers.len())
            }
            Err(error) => assert!(self.failing, "{error}"),
        }
        if self.store.failure().is_some() {
            assert!(self.failing);
            self.kill();
        }
    }

    fn commit(&mut self, input: &mut Input<'_>) {
        let offset = input.byte().into();
        let committed = CommittedOffset { topic: TOPICS[0].0.into(), queue: 0, offset };
        let end = loop {
            match self.store.commit_offsets(GROUP, std::slice::from_ref(&committed)) {
                Err(AppendError::NotReady) if self.store.wait_for_segment().is_ok() => {}
                end => break end,
            }
        };
        let end = match end {
            Ok(end) => end,
            Err(error) => return assert!(self.failing, "{error}"),
        };
        self.committed.push(Some(offset));
        let flushed = self.store.flushed_blocking(end);
        if flushed.is_ok() && self.store.dispatched().wait(end).is_ok() {
            self.committed = vec![Some(offset)];
            assert_eq!(self.store.committed_offset(GROUP, TOPICS[0].0, 0), Some(offset));
        } else {
            assert!(self.failing);
        }
    }

    /// Lets a call of one kind fail some calls from now, with one of two errors, once or from then on.
    fn fail(&mut self, input: &mut Input<'_>) {
        const VERBS: [Verb; 10] = [
            Verb::Sync,
            Verb::SyncMapped,
            Verb::WriteAllAt,
            Verb::CreateReserved,
            Verb::OpenOrCreate,
            Verb::SyncDir,
            Verb::SetBytes,
            Verb::Map,
            Verb::Remove,
            Verb::CreateDir,
        ];
        let (choice, verb) = (input.byte(), usize::from(input.byte()) % VERBS.len());
        self.failing = true;
        self.disk.add_fault(Fault {
            verb: Some(VERBS[verb]),
            syncs_only: false,
            path: String::new(),
            after: u64::from(choice >> 2),
            times: if choice & 2 > 0 { u64::MAX } else { 1 },
            outcome: Outcome::Error(if choice & 1 > 0 { ENOSPC } else { EIO }),
        });
    }

    /// Stops and opens again.
    fn restart(&mut self) {
        let closed = self.store.close();
        if self.failing {
            // Closed or not: what was acknowledged must be there.
            return self.reopen(self.mode.config());
        }
        closed.expect("nothing has failed");
        self.lanes.iter_mut().flatten().for_each(|lane| lane.acked = lane.numbers.len());
        self.reopen(self.mode.config());
    }

    /// Goes on with the files as they are.
    fn kill(&mut self) {
        if self.store.failure().is_none() {
            let written = self.store.written().get();
            let _ = self.store.dispatched().wait(written);
        }
        let left = self.disk.copy().expect("files in memory");
        self.leave_for(left);
    }

    /// Goes on with what a power cut leaves: nothing that is not durable, or some of it.
    fn cut_power(&mut self, input: &mut Input<'_>) {
        let mut model = CrashModel::default();
        self.disk.journal().iter().for_each(|event| model.pass(event));
        let mut random = u64::from(input.byte());
        let mut below = |end: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) % end.max(1)
        };
        let nothing = below(3) == 0;
        let survives = if nothing { Survives::Nothing } else { Survives::Any(&mut below) };
        self.lost = true;
        let left = model.image(survives).expect("files in memory");
        self.leave_for(left);
    }

    /// Ends the store where it is, which changes nothing any more, and opens it on another disk.
    fn leave_for(&mut self, disk: FaultDisk) {
        self.disk.clear_faults();
        let _ = self.store.close();
        self.disk = disk;
        self.reopen(self.mode.config());
    }

    /// Opens the store, where a call may fail and then does not again, and compares.
    fn reopen(&mut self, config: StoreConfig) {
        let disk = Arc::new(self.disk.clone());
        self.store = match Store::open_on(disk.clone(), config.clone()) {
            Ok(store) => store,
            Err(error) => {
                assert!(self.failing, "{error}");
                self.disk.clear_faults();
                Store::open_on(disk, config).expect("what could not be opened for an error can be")
            }
        };
        self.disk.clear_faults();
        for (topic, id) in lanes() {
            let found = self.read(topic, id);
            let first = self.queue(topic, id).min_offset() as usize;
            let lane = &mut self.lanes[topic][id];
            // Names that retention has removed may be back.
            assert!(first == lane.first || (self.lost && first < lane.first));
            lane.first = first;
            let end = lane.first + found.len();
            assert!(end >= lane.acked, "{} of {} acknowledged are there", end, lane.acked);
            let all = end == lane.numbers.len();
            assert!(all || self.failing || self.lost, "{end} of {}", lane.numbers.len());
            assert!(lane.numbers[lane.first..].starts_with(&found));
            lane.numbers.truncate(end);
        }
        let found = self.store.committed_offset(GROUP, TOPICS[0].0, 0);
        assert!(self.committed.contains(&found), "{found:?} of {:?}", self.committed);
        self.committed = vec![found];
        self.lost = false;
        self.failing = self.store.failure().is_some();
        assert!(!self.failing, "{:?}", self.store.failure());
    }

    /// Opens with a limit, lets retention do its work, and opens without.
    fn retain(&mut self) {
        self.kill();
        self.store.close().expect("nothing has failed");
        let retaining = StoreConfig {
            retention_bytes: Some(2 * SEGMENT_BYTES_MIN),
            retention_check_interval: Duration::from_millis(1),
            ..self.mode.config()
        };
        let disk = Arc::new(self.disk.clone());
        let store = Store::open_on(disk, retaining).expect("nothing has failed");
        let deadline = Instant::now() + Duration::from_secs(5);
        while store.stats().segments > 4 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(store.stats().segments <= 4, "retention does its work: {:?}", store.stats());
        store.close().expect("nothing has failed");
        self.store = store;
        for (topic, id) in lanes() {
            let first = self.queue(topic, id).min_offset() as usize;
            let lane = &mut self.lanes[topic][id];
            assert!(first >= lane.first && first <= lane.numbers.len());
            lane.first = first;
        }
        self.reopen(self.mode.config());
    }

    /// Everything visible is what the lists say.
    fn compare(&self) {
        if self.store.failure().is_some() {
            return;
        }
        let written = self.store.written().get();
        if self.store.dispatched().wait(written).is_err() {
            return assert!(self.failing);
        }
        for (topic, id) in lanes() {
            let lane = &self.lanes[topic][id];
            let found = self.read(topic, id);
            assert!(lane.numbers[lane.first..].starts_with(&found));
            let all = TOPICS[topic].1 == Durability::Write;
            assert!(!all || lane.first + found.len() == lane.numbers.len(), "{lane:?}");
            assert!(lane.first + found.len() >= lane.acked);
        }
    }

    /// The numbers of all visible messages of a queue.
    fn read(&self, topic: usize, id: usize) -> Vec<u64> {
        let queue = self.queue(topic, id);
        let mut numbers = Vec::new();
        let mut offset = queue.min_offset();
        loop {
            let plan =
                self.store.plan_read(&queue, offset, 4096, &TagFilter::All, IndexRead::MayBlock);
            let plan = match plan {
                Ok(plan) => plan,
                Err(ReadError::Io(error)) if self.failing => panic!("reads never fail: {error}"),
                Err(error) => panic!("{error}"),
            };
            if plan.records == 0 {
                return numbers;
            }
            for mut bytes in plan.ranges.iter().map(|range| range.bytes()) {
                while !bytes.is_empty() {
                    let record = RecordView::parse(bytes).expect("visible records are whole");
                    assert_eq!(record.verify_checksum(), Ok(()));
                    assert_eq!((record.topic(), record.queue()), (TOPICS[topic].0, id as u32));
                    assert_eq!(record.offset(), offset, "offsets are dense");
                    let number = record.body()[..8].try_into().map(u64::from_be_bytes);
                    numbers.push(number.expect("every body has a number"));
                    offset += 1;
                    bytes = &bytes[record.size()..];
                }
            }
            assert_eq!(plan.next_offset, offset);
        }
    }
}

fn lanes() -> impl Iterator<Item = (usize, usize)> {
    (0..TOPICS.len()).flat_map(|topic| (0..QUEUES).map(move |queue| (topic, queue)))
}

impl Mode {
    /// Nothing happens by itself but what appends ask for.
    fn config(self) -> StoreConfig {
        let never = Duration::from_secs(3600);
        let config = StoreConfig::new("/store");
        StoreConfig {
            segment_bytes: SEGMENT_BYTES_MIN,
            append_path: if self.mapped { AppendPath::Mapped } else { AppendPath::Pwrite },
            flush_interval: never,
            checkpoint_interval: never,
            checkpoint_bytes: if self.checkpoints { 4 << 10 } else { config.checkpoint_bytes },
            retention_check_interval: never,
            ..config
        }
    }
}
