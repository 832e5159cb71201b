//! Small meaningful inputs for the fuzz targets, from the codec and from a golden store's files.

use std::fs;
use std::io;
use std::path::Path;

use longwire_proto::data::{
    Extent, FetchQueue, FetchRequest, FetchResponse, FetchResult, FetchTopic, HelloRequest,
    ProduceRequest, ProduceResponse, ProduceResult, ProduceRun, RequestHeader, ResponseHeader,
    request_header::Request, response_header::Response,
};
use longwire_proto::frame;
use longwire_proto::record::{RecordDraft, RecordView, write_blank};

/// Writes the seeds of every target below a folder.
pub fn write_seeds(dir: &Path) -> io::Result<()> {
    let store = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/v1/closed");
    frames(&dir.join("frame"))?;
    records(&dir.join("record"), &store)?;
    produces(&dir.join("produce"))?;
    segments(&dir.join("segment_scan"), &store)?;
    consume_queues(&dir.join("consume_queue"), &store)?;
    checkpoints(&dir.join("checkpoint"), &store)?;
    views(&dir.join("views"), &store)?;
    configurations(&dir.join("configuration"))?;
    models(&dir.join("store_model"))
}

fn put(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let path = dir.join(name);
    if path.exists() { Ok(()) } else { fs::write(path, bytes) }
}

fn request(request: Request, body: &[u8]) -> io::Result<Vec<u8>> {
    let header = RequestHeader { correlation_id: 7, request: Some(request) };
    let head = frame::head(&header, body.len()).map_err(io::Error::other)?;
    Ok([&head[..], body].concat())
}

fn response(response: Response, body: &[u8]) -> io::Result<Vec<u8>> {
    let header = ResponseHeader { correlation_id: 7, response: Some(response) };
    let head = frame::head(&header, body.len()).map_err(io::Error::other)?;
    Ok([&head[..], body].concat())
}

fn record(draft: &RecordDraft<'_>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    draft.encode(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

fn frames(dir: &Path) -> io::Result<()> {
    let hello =
        HelloRequest { protocol_version: 1, client_id: "client".into(), session: Vec::new() };
    let hello = request(Request::Hello(hello), b"")?;
    let queues = vec![FetchQueue { queue: 3, offset: 9, max_bytes: 1 << 20 }];
    let topics = vec![FetchTopic {
        created_position: None,
        topic: "orders".into(),
        tag_hashes: vec![-1, 2],
        queues,
    }];
    let fetch = FetchRequest { max_wait_ms: 500, max_bytes: 1 << 20, topics };
    let fetch = request(Request::Fetch(fetch), b"")?;
    put(dir, "hello", &hello)?;
    put(dir, "fetch", &fetch)?;
    put(dir, "pipelined", [&hello[..], &fetch, &fetch[..20]].concat())?;
    let extents = vec![Extent { records: 2, offset: 5, position: 4096 }];
    let results = vec![ProduceResult { level: 2, extents, ..ProduceResult::default() }];
    put(dir, "produced", response(Response::Produce(ProduceResponse { results }), b"")?)?;
    let results = vec![FetchResult { bytes: 3, next_offset: 6, ..FetchResult::default() }];
    put(dir, "fetched", response(Response::Fetch(FetchResponse { results }), b"abc")?)
}

fn records(dir: &Path, store: &Path) -> io::Result<()> {
    put(
        dir,
        "plain",
        record(&RecordDraft { topic: "t", body: b"plain", ..RecordDraft::default() })?,
    )?;
    let born_host = ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 4711).into();
    let draft = RecordDraft {
        topic: "orders",
        born_host,
        store_host_v6: true,
        tag: "paid",
        keys: "a b",
        properties: &[("region", "eu")],
        body: b"hello",
        ..RecordDraft::default()
    };
    put(dir, "addresses", record(&draft)?)?;
    let log = fs::read(store.join("commitlog/00000000000000000000"))?;
    let view = RecordView::parse(&log).map_err(io::Error::other)?;
    put(dir, "stored", view.bytes())?;
    // The parts of a draft: hosts, address and port, numbers, texts, properties, body.
    let mut parts = vec![0, 127, 0, 0, 1, 0x1D, 0xE2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0];
    parts.extend_from_slice(&1_700_000_000_000_u64.to_be_bytes());
    for text in ["orders", "paid", "key", "name", "value", "other", "text"] {
        parts.push(text.len() as u8);
        parts.extend_from_slice(text.as_bytes());
    }
    parts.extend_from_slice(b"\x02body");
    put(dir, "parts", parts)
}

fn produces(dir: &Path) -> io::Result<()> {
    let draft = RecordDraft { topic: "orders", queue: 1, body: b"hello", ..RecordDraft::default() };
    let (one, other) = (record(&draft)?, record(&RecordDraft { tag: "paid", queue: 2, ..draft })?);
    let run = |queue, bytes: &[u8]| {
        let topic = "orders".to_owned();
        ProduceRun { topic, queue, bytes: bytes.len() as u32 }
    };
    let produce =
        |runs, body: &[u8]| request(Request::Produce(ProduceRequest { durability: 0, runs }), body);
    put(dir, "one", produce(vec![run(1, &one)], &one)?)?;
    let three = [&one[..], &one, &one].concat();
    put(dir, "three", produce(vec![run(1, &three)], &three)?)?;
    let both = [&three[..], &other].concat();
    put(dir, "two-queues", produce(vec![run(1, &three), run(2, &other)], &both)?)?;
    put(dir, "wrong-queue", produce(vec![run(2, &one)], &one)?)
}

fn segments(dir: &Path, store: &Path) -> io::Result<()> {
    let log = fs::read(store.join("commitlog/00000000000000000000"))?;
    let mut end = 0;
    for _ in 0..4 {
        end += RecordView::size_of(&log[end..]).map_err(io::Error::other)?;
    }
    let records = &log[..end];
    let seed = |bytes: &[u8]| [&[0, 0, 0][..], bytes].concat();
    put(dir, "zeros-behind", seed(&[records, &[0; 100]].concat()))?;
    let blank = [&write_blank(40)[..], &[0; 32]].concat();
    put(dir, "blank-behind", seed(&[records, &blank].concat()))?;
    put(dir, "torn", seed(&log[..end - 7]))?;
    let gap = [&[0; 60][..], &records[60..]].concat();
    put(dir, "later-records", seed(&gap))
}

fn consume_queues(dir: &Path, store: &Path) -> io::Result<()> {
    let index = fs::read(store.join("consumequeue/orders/1-00000000000000000000"))?;
    let seed = |entries: usize, steps: &[u8]| {
        let count = (entries as u16).to_be_bytes();
        [&count[..], &index[..entries * 20], steps].concat()
    };
    put(dir, "entries", seed(20, b""))?;
    put(dir, "pushed-and-stored", seed(3, &[0, 1, 2, 4, 0, 6, 0, 7, 128]))?;
    put(dir, "pages-trimmed", seed(1, &[8, 100, 4, 5, 90, 8, 200, 7, 60, 6, 7, 255, 5, 255, 0]))
}

fn checkpoints(dir: &Path, store: &Path) -> io::Result<()> {
    put(dir, "closed", fs::read(store.join("checkpoint"))?)?;
    let killed = store.with_file_name("killed").join("checkpoint");
    let killed = fs::read(killed)?;
    put(dir, "killed", &killed)?;
    put(dir, "one-slot", &killed[..44])
}

/// The bodies of the system topics' records, as the `views` target takes them.
fn views(dir: &Path, store: &Path) -> io::Result<()> {
    let mut all = Vec::new();
    let mut names = fs::read_dir(store.join("commitlog"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    for path in names {
        let log = fs::read(path)?;
        let mut rest = &log[..];
        while let Ok(record) = RecordView::parse(rest) {
            let topics = ["%SYS%TOPICS", "%SYS%GROUPS", "%SYS%OFFSETS"];
            if let Some(topic) = topics.iter().position(|topic| *topic == record.topic()) {
                let bytes = (record.body().len() as u16).to_be_bytes();
                all.push([&[topic as u8][..], &bytes, record.body()].concat());
            }
            rest = &rest[record.size()..];
        }
    }
    put(dir, "all", all.concat())?;
    // The target takes inputs of such a length through the database.
    let mut padded = all.concat();
    padded.resize(padded.len().next_multiple_of(16), 0);
    put(dir, "all-stored", padded)?;
    put(dir, "first-half", all[..all.len() / 2].concat())?;
    all.reverse();
    put(dir, "backwards", all.concat())
}

fn configurations(dir: &Path) -> io::Result<()> {
    put(dir, "empty", "")?;
    let file = "data_dir = '/file'\n[storage]\nsegment_bytes = '64MiB'\nretention_age = 'none'\n\
                [broker]\ndefault_queues = 3\n[limits]\nframe_timeout = '1m 30s'\n";
    put(dir, "file", file)?;
    let environment = "LONGWIRE_STORAGE_FLUSH_INTERVAL=2s\nLONGWIRE_TRANSFER_MODE=sendfile";
    let flags = "storage.segment_bytes=256 MiB\nlisten.advertised_data=broker.example:7650";
    put(dir, "all", [file, environment, flags].join("\n---\n"))?;
    put(dir, "environment", format!("\n---\n{environment}\nLONGWIRE_NOTHING=1"))?;
    put(dir, "out-of-range", format!("\n---\n\n---\n{flags}\nbroker.default_queues=0"))
}

/// Steps of the `store_model` target; see there. An append is 0, queue and count, size; a flush 3, a
/// comparison 4, a restart 5, a kill 6, a commit 7 and its offset, a failure 8 with when and which,
/// retention 9, a power cut 10 and what survives.
fn models(dir: &Path) -> io::Result<()> {
    let fill = [[0, 0xF2, 250], [0, 0xF1, 250], [0, 0xF3, 250], [0, 0xF0, 250]].concat();
    let few = [[0, 0, 9], [0, 0x71, 9], [0, 0x32, 9]].concat();
    let seed = |mode: u8, steps: &[&[u8]]| [&[mode][..], &steps.concat()].concat();
    put(dir, "append-and-read", seed(0, &[&[0, 0, 1, 0, 1, 2], &[3, 4, 0, 0x30, 9, 4]]))?;
    put(dir, "rolls-and-restarts", seed(1, &[&fill, &[3, 4, 5], &fill, &[6, 4]]))?;
    put(dir, "killed-with-commits", seed(0, &[&[7, 5, 0, 2, 9, 6, 7, 9, 6, 4]]))?;
    put(dir, "retention", seed(0, &[&[7, 5], &fill, &fill, &fill, &[3, 9, 4], &fill, &[6, 9, 4]]))?;
    put(dir, "power-cuts", seed(0, &[&few, &[3], &few, &[10, 0, 4], &few, &[5, 10, 7, 4]]))?;
    put(
        dir,
        "power-cut-rolled",
        seed(0, &[&fill, &fill, &[3, 7, 4, 10, 0, 4], &fill, &[9, 10, 1]]),
    )?;
    put(dir, "power-cut-mapped", seed(1, &[&fill, &[3, 7, 4], &fill, &[10, 2, 4, 9, 10, 3, 4]]))?;
    put(
        dir,
        "checkpoints",
        seed(2, &[&fill, &few, &[3, 10, 5, 4], &fill, &[3, 6, 4, 9, 4, 10, 6]]),
    )?;
    let unsynced: &[&[u8]] = &[&[0, 1, 9, 8, 0, 0, 3, 10, 0, 4, 0, 3, 9, 8, 0, 1, 3, 10, 0, 4]];
    put(dir, "failed-sync-power-cut", seed(0, unsynced))?;
    put(dir, "failed-sync-power-cut-mapped", seed(1, unsynced))?;
    put(dir, "no-space", seed(0, &[&[8, 3, 3], &fill, &fill, &[3, 4, 6, 4]]))
}
