//! The map views: a fold over records of system topics with any bodies in any order.
//!
//! Each record is a byte for its topic, two for the length of its body, and the body.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use longwire_proto::name::{check_group, check_topic};
use longwire_proto::record::{Placement, RecordDraft, RecordView, seal};
use longwire_proto::store::{GroupRecord, OffsetsRecord, TopicRecord};
use longwire_storage::disk::RealDisk;
use longwire_storage::testing::Fold;
use prost::Message;

use super::input::{Input, folder};

const TOPICS_TOPIC: &str = "%SYS%TOPICS";
const OFFSETS_TOPIC: &str = "%SYS%OFFSETS";
const TOPICS: [&str; 4] = [TOPICS_TOPIC, "%SYS%GROUPS", OFFSETS_TOPIC, "orders"];
const RECORDS_MAX: usize = 32;

/// What is in the views, and from where on the records of each topic count.
type Contents = (String, BTreeMap<Arc<str>, u64>);

/// Records at adjoining positions.
struct Log(Vec<Vec<u8>>, u64);

impl Log {
    fn push(&mut self, mut record: Vec<u8>) {
        let store_host = SocketAddr::from(([127, 0, 0, 1], 7650));
        let position = self.1;
        seal(&mut record, &Placement { offset: 0, position, store_timestamp_ms: 0, store_host });
        self.1 += record.len() as u64;
        self.0.push(record);
    }

    fn records(&self) -> impl Iterator<Item = RecordView<'_>> {
        self.0.iter().map(|bytes| RecordView::parse(bytes).expect("it was encoded"))
    }
}

pub(super) fn run(data: &[u8]) {
    let log = read(&mut Input(data));
    let half = log.0.len() / 2;
    let mut once = Fold::default();
    log.records().for_each(|record| once.fold(&record));
    let contents = (once.contents(), once.created());

    // From any point again, the same.
    log.records().for_each(|record| once.fold(&record));
    assert_eq!((once.contents(), once.created()), contents);
    through_database(&log, half, &contents);
    without_beginning(&log, half);
}

fn read(input: &mut Input<'_>) -> Log {
    let mut log = Log(Vec::new(), 0);
    while !input.is_empty() && log.0.len() < RECORDS_MAX {
        let topic = TOPICS[usize::from(input.byte()) % TOPICS.len()];
        let count = input.u16().into();
        let body = input.bytes(count);
        let mut record = Vec::new();
        let draft = RecordDraft { topic, body, ..RecordDraft::default() };
        draft.encode(&mut record).expect("any body can be encoded");
        log.push(record);
    }
    log
}

/// Kept in the database half-way, and gone on with from there.
fn through_database(log: &Log, half: usize, contents: &Contents) {
    let folder = folder();
    let (disk, path) = (Arc::new(RealDisk), folder.path().join("views.redb"));
    let mut first = Fold::default();
    log.records().take(half).for_each(|record| first.fold(&record));
    let before = (first.contents(), first.created());
    let mut stored = first.through_database(disk.clone(), &path).expect("it can be stored");
    assert_eq!((stored.contents(), stored.created()), before);
    log.records().for_each(|record| stored.fold(&record));
    assert_eq!((stored.contents(), stored.created()), *contents);
    let again = stored.through_database(disk, &path).expect("it can be stored");
    assert_eq!((again.contents(), again.created()), *contents);
}

/// What is carried forward before the first half goes suffices, for the views and for the next time.
fn without_beginning(all: &Log, half: usize) {
    let mut log = appended(all);
    let half = half.min(log.0.len());
    let mut whole = Fold::anew();
    log.records().for_each(|record| whole.fold(&record));
    whole.end();
    let beginning = log.0[..half].iter().map(|record| record.len() as u64).sum();
    for record in whole.carried_forward(beginning) {
        log.push(record);
    }
    log.0.drain(..half);
    let mut rebuilt = Fold::anew();
    log.records().for_each(|record| rebuilt.fold(&record));
    rebuilt.end();
    assert_eq!(rebuilt.contents(), whole.contents());
    for (topic, created) in whole.created() {
        assert!(rebuilt.created()[&topic] <= created, "{topic} has lost its beginning");
    }
}

/// The records a store would append. A commit to a topic that is gone is none: where the deletion that
/// made it void is gone too, it would count as one of the topic's next life.
fn appended(all: &Log) -> Log {
    let (mut live, mut log) = (HashSet::new(), Log(Vec::new(), 0));
    for record in all.records() {
        let sound = match record.topic() {
            TOPICS_TOPIC => TopicRecord::decode(record.body()).is_ok_and(|topic| {
                let sound = check_topic(&topic.name).is_ok();
                _ = if topic.deleted { live.remove(&topic.name) } else { live.insert(topic.name) };
                sound
            }),
            OFFSETS_TOPIC => OffsetsRecord::decode(record.body()).is_ok_and(|commit| {
                let mut topics = commit.topics.iter();
                check_group(&commit.group).is_ok() && topics.all(|t| live.contains(&t.topic))
            }),
            _ => GroupRecord::decode(record.body()).is_ok_and(|g| check_group(&g.name).is_ok()),
        };
        if sound {
            log.push(record.bytes().to_vec());
        }
    }
    log
}
