//! Requests and records that are whole frames and still make no sense.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use longwire_client::{Client, ErrorKind, Message, NewTopic, TagFilter};
use longwire_proto::ErrorCode;
use longwire_proto::limits::{BODY_BYTES_MAX, PROPERTIES_BYTES_MAX};
use longwire_tests::frame_client::{FrameClient, fetch, record};
use longwire_tests::segment_writer::Record;
use longwire_tests::wait::{until, within};

use crate::Scene;

/// A record as it goes over the wire, made without any limits.
fn raw(topic: &str, body: usize) -> Record {
    Record::new(topic, 0, 0, vec![7; body])
}

/// The code a run is refused with; nothing of it may be there afterwards.
fn refused(client: &mut FrameClient, topic: &str, queue: u32, bytes: &[u8]) -> ErrorCode {
    let result = client.produce(topic, queue, bytes);
    assert!(result.extents.is_empty(), "{result:?}");
    assert!(!result.message.is_empty());
    ErrorCode::from_number(result.code).expect("a stable code")
}

#[test]
fn records_that_contradict_themselves_their_run_or_the_limits_are_refused() {
    let scene = Scene::start(&[]);
    let mut client = scene.connect();
    let good = record("t", 0, b"a good body");
    let changed = |at: usize, bytes: &[u8]| {
        let mut record = good.clone();
        record[at..at + bytes.len()].copy_from_slice(bytes);
        record
    };
    let body_at = 88;
    assert_eq!(&good[body_at..body_at + 11], b"a good body");
    let body_length_at = body_at - 4;
    let two = [&good[..], &changed(body_at, b"X")].concat();
    let large_property = "p".repeat(PROPERTIES_BYTES_MAX);
    for (what, bytes, code) in [
        ("a body changed on the way", changed(body_at, b"A"), ErrorCode::CorruptRecord),
        ("a body checksum of zero", changed(8, &[0; 4]), ErrorCode::CorruptRecord),
        ("a second record that is damaged", two, ErrorCode::CorruptRecord),
        ("another magic number", changed(4, &[1, 2, 3, 4]), ErrorCode::InvalidRecord),
        ("a blank record", changed(4, &0xCBD4_3194_u32.to_be_bytes()), ErrorCode::InvalidRecord),
        ("a size of 0", changed(0, &[0; 4]), ErrorCode::InvalidRecord),
        ("a size beyond the run", changed(0, &[0, 0, 2, 0]), ErrorCode::InvalidRecord),
        ("a size below the run", changed(3, &[good[3] - 1]), ErrorCode::InvalidRecord),
        (
            "a body beyond the record",
            changed(body_length_at, &[0, 0, 2, 0]),
            ErrorCode::InvalidRecord,
        ),
        ("a body length of 4 GiB", changed(body_length_at, &[255; 4]), ErrorCode::MessageTooLarge),
        ("a size of 4 GiB", changed(0, &[255; 4]), ErrorCode::MessageTooLarge),
        ("another queue", record("t", 1, b"x"), ErrorCode::InvalidRecord),
        ("another topic", record("u", 0, b"x"), ErrorCode::InvalidRecord),
        ("a system topic inside", record("%SYS%OFFSETS", 0, b"x"), ErrorCode::InvalidRecord),
        ("no record at all", Vec::new(), ErrorCode::InvalidRecord),
        ("half a record", good[..good.len() / 2].to_vec(), ErrorCode::InvalidRecord),
        (
            "no room for the checksum",
            Record { checksum: false, ..raw("t", 9) }.encode(0),
            ErrorCode::InvalidRecord,
        ),
        (
            "a body of 4 MiB and a byte",
            raw("t", BODY_BYTES_MAX + 1).encode(0),
            ErrorCode::MessageTooLarge,
        ),
        ("a body of 5 MiB", raw("t", 5 << 20).encode(0), ErrorCode::MessageTooLarge),
        (
            "properties over 32 KiB",
            raw("t", 1).property("a", &large_property).encode(0),
            ErrorCode::MessageTooLarge,
        ),
    ] {
        assert_eq!(refused(&mut client, "t", 0, &bytes), code, "{what}");
    }
    // The largest there may be is taken, and all that was refused has left no offset behind.
    assert_eq!(
        client.produce("t", 0, &record("t", 0, &vec![7; BODY_BYTES_MAX])).extents[0].offset,
        0
    );
    assert_eq!(client.produce("t", 0, &good).extents[0].offset, 1);
    scene.assert_unharmed();
}

#[test]
fn topics_and_queues_that_are_not_there_and_names_that_cannot_be_are_refused() {
    let scene = Scene::start(&["broker.auto_create_topics=false"]);
    let mut client = scene.connect();
    let code = |client: &mut FrameClient, topic: &str, queue| {
        refused(client, topic, queue, &record("t", queue, b"x"))
    };
    let long = "t".repeat(128);
    assert_eq!(code(&mut client, "absent", 0), ErrorCode::UnknownTopic);
    for name in ["", "with blank", "a/b", "a.b", "\u{e9}", "nul\0", "../../etc/passwd", &long] {
        let code = code(&mut client, name, 0);
        assert!(
            matches!(code, ErrorCode::InvalidName | ErrorCode::UnknownTopic),
            "{name:?}: {code}"
        );
    }
    assert_eq!(code(&mut client, "%SYS%OFFSETS", 0), ErrorCode::SystemTopic);
    let (answer, body) = client.fetch(fetch("absent", &[(0, 0)], 1 << 20, Duration::from_secs(9)));
    assert_eq!(answer.results[0].code, ErrorCode::UnknownTopic.number());
    assert!(body.is_empty());

    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(bad_names_on_the_control_plane(&scene));
    assert_eq!(code(&mut client, "three", 3), ErrorCode::UnknownQueue);
    let (answer, _) = client.fetch(fetch("three", &[(3, 0)], 1 << 20, Duration::from_secs(9)));
    assert_eq!(answer.results[0].code, ErrorCode::UnknownQueue.number());
    scene.assert_unharmed();
}

async fn bad_names_on_the_control_plane(scene: &Scene) {
    let client = Client::connect(scene.broker.control()).await.unwrap();
    let admin = client.admin();
    admin.create_topic(NewTopic::new("three").queues(3)).await.unwrap();
    for name in ["", "with blank", "a/b", "..", &"t".repeat(128)] {
        let error = admin.create_topic(NewTopic::new(name)).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::InvalidName), "{name:?}: {error}");
    }
    let error = admin.create_topic(NewTopic::new("%SYS%MINE")).await.unwrap_err();
    assert!(
        matches!(error.code(), Some(ErrorCode::SystemTopic | ErrorCode::InvalidName)),
        "{error}"
    );
    let error = admin.create_topic(NewTopic::new("many").queues(u32::MAX)).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidRequest), "{error}");
    let producer = client.producer().build().await.unwrap();
    let error = producer.send(Message::new("absent", "x")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic), "{error}");
    assert!(!error.outcome_unknown());
    let absent = client.consumer().group("g").subscribe("absent", TagFilter::all());
    let error = absent.build().await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic), "{error}");
    let error = admin.describe_group("no-such-group").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownGroup), "{error}");
}

#[test]
fn an_offset_out_of_range_is_answered_with_the_range() {
    let scene = Scene::start(&[]);
    let mut client = scene.connect();
    let bytes: Vec<u8> = (0..5).flat_map(|_| record("t", 0, b"x")).collect();
    assert_eq!(client.produce("t", 0, &bytes).code, 0);
    let arrived = client.fetch(fetch("t", &[(0, 4)], 1, Duration::from_secs(30))).0;
    assert_eq!(arrived.results[0].next_offset, 5);
    for offset in [6, 1_000, u64::MAX] {
        let (answer, _) = client.fetch(fetch("t", &[(0, offset)], 1, Duration::from_secs(30)));
        let result = &answer.results[0];
        assert_eq!(result.code, ErrorCode::OffsetOutOfRange.number(), "{offset}");
        assert_eq!((result.min_offset, result.max_offset), (0, 5));
    }
    scene.assert_unharmed();
}

#[test]
fn a_record_damaged_on_disk_is_named_to_its_consumer_and_other_queues_go_on() {
    let scene = Scene::start(&[]);
    let mut client = scene.connect();
    for queue in [0, 1] {
        let bytes: Vec<u8> = (0..3).flat_map(|_| record("t", queue, b"untouched")).collect();
        assert_eq!(client.produce("t", queue, &bytes).code, 0);
    }
    let damaged = client.produce("t", 0, &record("t", 0, b"to be damaged")).extents.remove(0);
    assert_eq!(damaged.offset, 3);
    assert_eq!(client.produce("t", 0, &record("t", 0, b"behind it")).code, 0);
    let visible = || {
        let request = fetch("t", &[(0, 4)], 1, Duration::from_secs(1));
        client.fetch(request).0.results.first().map(|result| assert_eq!(result.code, 0))
    };
    until("the records are visible", Duration::from_secs(30), visible);
    // One bit of the store timestamp: only the whole-record checksum tells.
    flip_bit(&scene, damaged.position + 56 + 7);

    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = Client::connect(scene.broker.control()).await.unwrap();
        let consumer = client.consumer().broadcast().subscribe("t", TagFilter::all());
        let mut consumer = consumer.build().await.unwrap();
        let (mut received, mut error) = (Vec::new(), None);
        while received.len() < 6 || error.is_none() {
            match within("messages", Duration::from_secs(30), consumer.recv()).await {
                Ok(message) => received.push((message.queue(), message.offset())),
                Err(e) => error = Some(e),
            }
        }
        received.sort_unstable();
        assert_eq!(received, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
        let error = error.unwrap();
        assert_eq!(error.kind(), ErrorKind::CorruptRecord, "{error}");
        let named = error.record().unwrap();
        assert_eq!((&*named.queue.topic, named.queue.queue, named.offset), ("t", 0, 3));
        // The application decides to pass over it.
        consumer.seek(&named.queue, 4).unwrap();
        let next = within("the next one", Duration::from_secs(30), consumer.recv()).await.unwrap();
        assert_eq!((next.offset(), &next.body()[..]), (4, &b"behind it"[..]));
    });
    scene.assert_unharmed();
}

/// Changes a bit of the first segment.
fn flip_bit(scene: &Scene, position: u64) {
    let path = scene.folder().join("commitlog/00000000000000000000");
    let file: File = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[byte[0] ^ 1], position).unwrap();
}
