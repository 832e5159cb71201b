//! What single steps cost: `cargo bench --bench micro`.
//!
//! `-- --quick` takes fewer samples, `-- --test` only runs each step once.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use longwire_proto::record::{Placement, RecordDraft, RecordView, crc32, seal};
use longwire_storage::{
    Durability, IndexRead, Queue, RecordRun, Store, StoreConfig, TagFilter, TopicConfig,
};

const BODIES: [usize; 3] = [100, 1 << 10, 64 << 10];
/// Queues that records are spread over in turn, so that no two of one queue adjoin.
const INTERLEAVED_QUEUES: u32 = 1_000;
const RECORDS_PER_QUEUE: usize = 64;
const BODY_BYTES: usize = 1 << 10;

fn encoded(topic: &str, queue: u32, body_bytes: usize) -> Vec<u8> {
    let (body, mut record) = (vec![b'x'; body_bytes], Vec::new());
    let draft =
        RecordDraft { topic, queue, tag: "paid", keys: "k1", body: &body, ..Default::default() };
    draft.encode(&mut record).unwrap();
    record
}

fn placement() -> Placement {
    Placement {
        offset: 7,
        position: 4096,
        store_timestamp_ms: 1_700_000_000_000,
        store_host: ([127, 0, 0, 1], 7650).into(),
    }
}

/// The record on its way: made by a producer, filled in by the broker, checked by a consumer.
fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("record");
    for bytes in BODIES {
        let body = vec![b'x'; bytes];
        let draft = RecordDraft {
            topic: "orders",
            tag: "paid",
            keys: "k1",
            body: &body,
            ..Default::default()
        };
        group.throughput(Throughput::Bytes(bytes as u64));
        let mut into = Vec::with_capacity(bytes + 1024);
        group.bench_function(BenchmarkId::new("encode", bytes), |bencher| {
            bencher.iter(|| {
                into.clear();
                black_box(&draft).encode(&mut into).unwrap();
            });
        });
        let mut record = encoded("orders", 0, bytes);
        group.bench_function(BenchmarkId::new("check", bytes), |bencher| {
            bencher.iter_batched_ref(
                || record.clone(),
                |record| RecordRun::check("orders", 0, record).unwrap().records(),
                BatchSize::SmallInput,
            );
        });
        group.bench_function(BenchmarkId::new("seal", bytes), |bencher| {
            bencher.iter(|| seal(black_box(&mut record), &placement()));
        });
        group.bench_function(BenchmarkId::new("parse", bytes), |bencher| {
            bencher.iter(|| RecordView::parse(black_box(&record)).unwrap().size());
        });
        group.bench_function(BenchmarkId::new("verify", bytes), |bencher| {
            let view = RecordView::parse(&record).unwrap();
            bencher.iter(|| black_box(&view).verify_checksum().unwrap());
        });
    }
    group.finish();
}

fn crc(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crc32");
    for bytes in [64, 1 << 10, 64 << 10, 1 << 20] {
        let data = vec![0x5a; bytes];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(bytes), |bencher| {
            bencher.iter(|| crc32(black_box(&data)));
        });
    }
    group.finish();
}

/// A store with a topic of so many queues, filled in turn with `records` records each.
fn filled(dir: &Path, queues: u32, records: usize) -> (Arc<Store>, Arc<Queue>) {
    let store =
        Store::open(StoreConfig { segment_bytes: 256 << 20, ..StoreConfig::new(dir) }).unwrap();
    let topic = TopicConfig { durability: Durability::Write, ..TopicConfig::new("t", queues) };
    let queues = store.create_topic(topic).unwrap().queues();
    let mut end = 0;
    for _ in 0..records {
        for queue in &queues {
            end = append(&store, queue, &mut encoded("t", queue.id(), BODY_BYTES));
        }
    }
    store.dispatched().wait(end).unwrap();
    (store, Arc::clone(&queues[0]))
}

fn append(store: &Store, queue: &Queue, record: &mut [u8]) -> u64 {
    let mut run = RecordRun::check("t", queue.id(), record).unwrap();
    store.append_blocking(queue, &mut run).unwrap().last().unwrap().end
}

/// A fetch as ranges: from entries of the consume queue that adjoin, or that do not.
fn read_plan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read plan");
    for (layout, queues) in [("contiguous", 1), ("interleaved", INTERLEAVED_QUEUES)] {
        let dir = tempfile::tempdir_in(".").unwrap();
        let (store, queue) = filled(dir.path(), queues, RECORDS_PER_QUEUE);
        for records in [1, RECORDS_PER_QUEUE] {
            let first = (RECORDS_PER_QUEUE - records) as u64;
            let plan = || {
                let index = IndexRead::ResidentOnly;
                store.plan_read(&queue, first, 1 << 20, &TagFilter::All, index).unwrap()
            };
            let ranges = if queues == 1 { 1 } else { records };
            assert_eq!((plan().records as usize, plan().ranges.len()), (records, ranges));
            group.throughput(Throughput::Elements(records as u64));
            group.bench_function(BenchmarkId::new(layout, records), |bencher| bencher.iter(plan));
        }
        store.close().unwrap();
    }
    group.finish();
}

/// The consume queue: a search in it, and an entry more, with the append that makes it.
fn index(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("consume queue");
    let dir = tempfile::tempdir_in(".").unwrap();
    let (store, queue) = filled(dir.path(), 1, 4_096);
    // A time that the first record is not older than is found without a search.
    let search = || store.offset_at_time(&queue, black_box(i64::MAX)).unwrap();
    assert_eq!(search(), 4_096);
    group.bench_function("search by time among 4096", |bencher| bencher.iter(search));
    let mut record = encoded("t", 0, 100);
    group.bench_function("append and dispatch 100 bytes", |bencher| {
        bencher.iter(|| {
            let end = append(&store, &queue, &mut record);
            store.dispatched().wait(end).unwrap();
        });
    });
    group.finish();
    store.close().unwrap();
}

criterion_group! {
    name = micro;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = codec, crc, read_plan, index
}
criterion_main!(micro);
