//! Every way records leave the broker gives the same bytes.

use std::fs::File;
use std::time::{Duration, Instant};

use longwire_broker::config::{Config, TransferMode};
use longwire_proto::data::request_header::Request;

use crate::TestBroker;
use crate::client::{Client, fetch, noise, split};

const MODES: [TransferMode; 4] =
    [TransferMode::Adaptive, TransferMode::Sendfile, TransferMode::Mmap, TransferMode::Buffered];
const LONG: Duration = Duration::from_secs(60);

/// Around every threshold: page, copied or not, `sendfile` or not, most bytes of one call.
const SIZES: [usize; 16] = [
    0, 1, 100, 1_000, 3_900, 4_096, 5_000, 16_000, 40_000, 65_400, 65_536, 70_000, 262_000,
    262_144, 600_000, 2_000_000,
];

#[test]
fn records_of_every_size_arrive_byte_for_byte_in_every_mode() {
    for mode in MODES {
        let broker = TestBroker::start_with(|config| config.transfer.mode = mode);
        let mut client = Client::connect(broker.addr());
        let mut queues = vec![Vec::new(); 3];
        for (seed, &size) in (0..).zip(SIZES.iter().chain(SIZES.iter().rev())) {
            // Runs of one queue, broken by records of the others.
            let queue = seed as usize / 3 % 3;
            let body = noise(seed, size);
            client.produce_bodies("t", queue as u32, std::slice::from_ref(&body));
            queues[queue].push(body);
        }
        for bytes_max in [1, 10_000, 300_000, 16 << 20] {
            for (queue, bodies) in (0..).zip(&queues) {
                client.assert_queue_holds("t", queue, bytes_max, bodies);
            }
        }
    }
}

#[test]
fn small_records_scattered_over_many_queues_arrive_byte_for_byte_in_every_mode() {
    for mode in MODES {
        let broker = TestBroker::start_with(|config| {
            config.transfer.mode = mode;
            config.broker.default_queues = 128;
        });
        let mut client = Client::connect(broker.addr());
        let mut expected = vec![Vec::new(); 128];
        for i in 0..3_000_u64 {
            let queue = (i * 37 % 128) as usize;
            let body = noise(i, (i % 700) as usize);
            client.produce_bodies("t", queue as u32, std::slice::from_ref(&body));
            expected[queue].push(body);
        }
        let mut offsets = vec![0; 128];
        while offsets.iter().sum::<u64>() < 3_000 {
            let queues: Vec<(u32, u64)> = (0..).zip(offsets.iter().copied()).collect();
            let (_, body) = client.fetch(fetch("t", &queues, 200_000, LONG));
            for record in split(&body) {
                let (queue, offset) = (record.queue() as usize, record.offset());
                assert_eq!(offset, offsets[queue]);
                assert!(record.body() == expected[queue][offset as usize]);
                offsets[queue] += 1;
            }
        }
    }
}

#[test]
fn a_slow_reader_gets_every_byte_in_every_mode() {
    for mode in MODES {
        let broker = TestBroker::start_with(|config| {
            config.transfer.mode = mode;
            config.transfer.send_buffer_bytes = Some(16 << 10);
        });
        let mut client = Client::connect(broker.addr());
        let sizes = [1_000, 30_000, 300_000, 500, 2_000, 100_000];
        let bodies: Vec<Vec<u8>> = (0..).zip(sizes).map(|(seed, size)| noise(seed, size)).collect();
        for (i, body) in bodies.iter().enumerate() {
            client.produce_bodies("t", 0, std::slice::from_ref(body));
            client.produce_bodies("t", 1, &[noise(i as u64, 50)]);
        }
        let mut slow = Client::connect(broker.addr());
        socket2::SockRef::from(&slow.stream).set_recv_buffer_size(32 << 10).unwrap();
        slow.assert_queue_holds("t", 0, 16 << 20, &bodies);
        slow.assert_queue_holds("t", 0, 16 << 20, &bodies);
    }
}

#[test]
fn answers_of_many_pipelined_fetches_do_not_mix() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    for queue in 0..8 {
        let bodies: Vec<Vec<u8>> = (0..20).map(|i| noise(i, 9_000 * queue as usize)).collect();
        client.produce_visible("t", queue, &bodies);
    }
    let ids: Vec<u64> = (0..100)
        .map(|i| client.send(Request::Fetch(fetch("t", &[(i % 8, 0)], 150_000, LONG)), &[]))
        .collect();
    for _ in 0..100 {
        let (id, _, body) = client.receive().unwrap();
        let queue = ids.iter().position(|&sent| sent == id).unwrap() as u32 % 8;
        assert!(split(&body).iter().all(|record| record.queue() == queue));
    }
}

#[test]
fn a_long_run_leaves_by_sendfile_and_scattered_records_by_the_mapping() {
    let broker = TestBroker::start();
    let mut client = Client::connect(broker.addr());
    let bodies: Vec<Vec<u8>> = (0..1_000).map(|i| noise(i, 1_000)).collect();
    client.produce_visible("t", 0, &bodies);
    let sent =
        |path: &str| broker.metric(&format!("longwire_transfer_bytes_total{{path=\"{path}\"}}"));
    // What was fetched while the records were becoming visible does not count.
    let (sendfile, mmap) = (sent("sendfile"), sent("mmap"));
    client.assert_queue_holds("t", 0, 8 << 20, &bodies);
    // Bytes are counted when they have been sent, which a client can be ahead of.
    let counted = |path: &str, bytes: f64| {
        let began = Instant::now();
        while sent(path) < bytes {
            assert!(began.elapsed() < Duration::from_secs(30), "{path}: {} of {bytes}", sent(path));
        }
    };
    counted("sendfile", sendfile + 1_000_000.0);
    assert_eq!((sent("mmap"), sent("buffered")), (mmap, 0.0));

    for body in &bodies[..50] {
        client.produce_bodies("t", 1, std::slice::from_ref(body));
        client.produce_bodies("t", 2, std::slice::from_ref(body));
    }
    client.assert_queue_holds("t", 1, 8 << 20, &bodies[..50]);
    counted("mmap", mmap + 50_000.0);
    assert_eq!(sent("buffered"), 0.0);
}

#[test]
fn cold_records_arrive_byte_for_byte_read_in_on_the_pool_where_there_is_one() {
    let mut first = TestBroker::start();
    let size = |number: u64| if number < 200 { 3_000 } else { 1 << 20 };
    let bodies: Vec<Vec<u8>> = (0..220).map(|i| noise(i, size(i))).collect();
    let mut client = Client::connect(first.addr());
    // At first with records of others in between, which are read in with them or not.
    for (number, body) in bodies[..200].iter().enumerate() {
        client.produce_bodies("t", 0, std::slice::from_ref(body));
        let others = noise(number as u64, [700, 100 << 10][number / 100]);
        client.produce_bodies("t", 1, &[others]);
    }
    for batch in bodies[200..].chunks(6) {
        client.produce_bodies("t", 0, batch);
    }
    first.stop();
    let dir = first.data_dir().join("data");
    for (mode, threads) in MODES.into_iter().flat_map(|mode| [(mode, 4), (mode, 0)]) {
        let broker = start_evicted(&dir, |changed| {
            changed.storage.segment_bytes = 64 << 20;
            changed.transfer.mode = mode;
            changed.transfer.io_threads = threads;
        });
        let mut client = Client::connect(broker.addr());
        client.assert_queue_holds("t", 0, 16 << 20, &bodies);
        let waited = broker.metric("longwire_cold_waits_total") > 0.0;
        assert_eq!(waited, threads > 0, "{mode:?}");
    }
}

#[test]
fn who_does_not_take_history_keeps_nobody_from_reading_it() {
    let mut first = TestBroker::start();
    let bodies: Vec<Vec<u8>> = (0..12).map(|i| noise(i, 300_000)).collect();
    let mut client = Client::connect(first.addr());
    client.produce_bodies("t", 0, &bodies);
    first.stop();
    let broker = start_evicted(&first.data_dir().join("data"), |changed| {
        changed.transfer.io_threads = 1;
        changed.transfer.send_buffer_bytes = Some(16 << 10);
    });
    // More than there are threads, and places for those who read past the page cache.
    let mut stalled: Vec<(Client, u64)> = (0..12)
        .map(|_| {
            let mut client = Client::connect(broker.addr());
            socket2::SockRef::from(&client.stream).set_recv_buffer_size(32 << 10).unwrap();
            let id = client.send(Request::Fetch(fetch("t", &[(0, 0)], 16 << 20, LONG)), &[]);
            (client, id)
        })
        .collect();
    let mut client = Client::connect(broker.addr());
    client.assert_queue_holds("t", 0, 16 << 20, &bodies);
    for (client, id) in &mut stalled {
        let (_, body) = client.fetched(*id);
        let records = split(&body);
        assert!(records.iter().map(|record| record.body()).eq(&bodies));
    }
}

/// A broker on a store of which nothing is in memory.
fn start_evicted(dir: &std::path::Path, change: impl FnOnce(&mut Config)) -> TestBroker {
    evict(dir);
    TestBroker::start_with(|config| {
        *config = Config { data_dir: dir.into(), ..Config::ephemeral(dir) };
        change(config);
    })
}

/// Drops the files' pages from memory.
fn evict(dir: &std::path::Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            evict(&path);
        } else {
            let file = File::open(path).unwrap();
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
    }
}
