//! What connections cost that do nothing. Alone in its process, which it measures.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::net::TcpStream;

use longwire_broker::{Broker, Config};
use longwire_proto::data::{FetchQueue, FetchRequest, FetchTopic, HelloRequest, RequestHeader};
use longwire_proto::data::{ProduceRequest, ProduceRun, request_header::Request};
use longwire_proto::frame;
use longwire_proto::record::RecordDraft;

const CONNECTIONS: usize = 400;

#[test]
fn idle_connections_and_parked_fetches_cost_a_few_kilobytes_and_no_wake_ups() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let broker = runtime.block_on(Broker::start(Config::ephemeral(dir.path()))).unwrap();
    let connect = || {
        let mut stream = TcpStream::connect(broker.data_addr()).unwrap();
        let hello =
            HelloRequest { protocol_version: 1, client_id: "idle".into(), session: Vec::new() };
        call(&mut stream, Request::Hello(hello), &[]);
        stream
    };
    let mut record = Vec::new();
    RecordDraft { topic: "t", ..RecordDraft::default() }.encode(&mut record).unwrap();
    let run = ProduceRun { topic: "t".into(), queue: 0, bytes: record.len() as u32 };
    call(
        &mut connect(),
        Request::Produce(ProduceRequest { durability: 0, runs: vec![run] }),
        &record,
    );

    let before = anonymous_bytes();
    let mut streams: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect()).collect();
    for stream in &mut streams[..CONNECTIONS / 2] {
        let queues = (1..8).map(|queue| FetchQueue { queue, offset: 0, max_bytes: 0 }).collect();
        let topic =
            FetchTopic { created_position: None, topic: "t".into(), tag_hashes: vec![], queues };
        let fetch = FetchRequest { max_wait_ms: 60_000, max_bytes: 1 << 20, topics: vec![topic] };
        send(stream, Request::Fetch(fetch), &[]);
    }
    let settled = settled_switches();
    let each = anonymous_bytes().saturating_sub(before) / CONNECTIONS;
    assert!(each < 8 * 1024, "{each} bytes for each connection");

    std::thread::sleep(std::time::Duration::from_secs(2));
    let switches = switches() - settled;
    assert!(switches < 20, "{switches} wake-ups in two seconds of rest");
}

fn send(stream: &mut TcpStream, request: Request, body: &[u8]) {
    let header = RequestHeader { correlation_id: 1, request: Some(request) };
    let mut bytes = frame::head(&header, body.len()).unwrap().to_vec();
    bytes.extend_from_slice(body);
    stream.write_all(&bytes).unwrap();
}

fn call(stream: &mut TcpStream, request: Request, body: &[u8]) {
    send(stream, request, body);
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
}

/// Anonymous memory of this process: heap and stacks, no mapped files.
fn anonymous_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<usize>().unwrap() * 1024
}

/// How often threads of the broker have given up a processor so far.
fn switches() -> u64 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let of_broker = threads.filter_map(|thread| {
        let path = thread.ok()?.path();
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        let status = std::fs::read_to_string(path.join("status")).ok()?;
        name.starts_with("lw-").then_some(status)
    });
    of_broker
        .map(|status| {
            let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            line.unwrap().trim().parse::<u64>().unwrap()
        })
        .sum()
}

/// The number of switches once it has stopped rising.
fn settled_switches() -> u64 {
    let mut last = switches();
    loop {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let now = switches();
        if now <= last + 2 {
            return now;
        }
        last = now;
    }
}
