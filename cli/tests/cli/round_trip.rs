//! What `consume` writes is what `produce` read.

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::broker::{TestBroker, failure};

/// Bytes without a pattern, the same in every run.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

/// Binary lines of 0 bytes to 1 MiB, the last without a newline.
fn binary_lines(seed: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, length) in [0, 1, 0, 17, 1 << 20, 0, 300_000, 2, 65_536, 5].iter().enumerate() {
        let line = noise(seed + index as u64, *length);
        out.extend(line.iter().map(|&b| if b == b'\n' { 0 } else { b }));
        out.push(b'\n');
    }
    out.extend_from_slice(b"\r\xff\0 no newline");
    out
}

fn assert_same(left: &[u8], right: &[u8]) {
    let differ = left.iter().zip(right).position(|(a, b)| a != b);
    assert!(left == right, "{} and {} bytes, first differ at {differ:?}", left.len(), right.len());
}

#[test]
fn lines_come_back_byte_for_byte_from_any_number_of_queues() {
    let broker = TestBroker::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("input");
    for queues in ["1", "8"] {
        let topic = format!("lines-{queues}");
        broker.ok(&["topic", "create", &topic, "--queues", queues]);
        // Several runs, each to any queue: all of it comes back in the order of the runs.
        let mut all = Vec::new();
        for run in 0..4 {
            let input = binary_lines(run * 100);
            fs::write(&file, &input).unwrap();
            broker.ok(&["produce", &topic, file.to_str().unwrap()]);
            all.extend_from_slice(&input);
        }
        assert_same(&broker.ok(&["consume", &topic]), &all);
    }
}

#[test]
fn many_short_lines_keyed_over_all_queues_come_back_in_order() {
    let broker = TestBroker::start();
    let lines: String = (0..20_000).map(|n| format!("k{}:{n}\n", n % 97)).collect();
    let bodies: String = (0..20_000).map(|n| format!("{n}\n")).collect();
    broker.ok(&["topic", "create", "keyed", "--queues", "5", "--durability", "write"]);
    broker.ok_with(&["produce", "keyed", "--key-separator", ":"], lines.as_bytes());
    let used: Vec<_> = broker.json(&["topic", "describe", "keyed"])["ranges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|range| range["max_offset"].as_u64().unwrap())
        .collect();
    assert!(used.iter().all(|&messages| messages > 0), "{used:?}");

    let out = String::from_utf8(broker.ok(&["consume", "keyed"])).unwrap();
    let mut sorted: Vec<_> = out.lines().map(|line| line.parse::<u32>().unwrap()).collect();
    // Batches of different queues overtake each other on the way; keys keep their order.
    let mut last = [None; 97];
    for &n in &sorted {
        assert!(last[n as usize % 97] < Some(n), "{n} after {:?}", last[n as usize % 97]);
        last[n as usize % 97] = Some(n);
    }
    sorted.sort_unstable();
    let sorted: String = sorted.iter().map(|n| format!("{n}\n")).collect();
    assert_same(sorted.as_bytes(), bodies.as_bytes());
}

#[test]
fn whole_files_and_chunks_come_back_byte_for_byte() {
    let broker = TestBroker::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("input");
    let input = noise(7, 3_000_000);
    fs::write(&file, &input).unwrap();
    let file = file.to_str().unwrap();

    for (topic, split) in [("chunks", "100KB"), ("whole", "file")] {
        for compression in ["none", "lz4", "zstd", "zlib"] {
            let topic = format!("{topic}-{compression}");
            broker.ok(&["produce", &topic, file, "--split", split, "--compression", compression]);
            assert_same(&broker.ok(&["consume", &topic]), &input);
            assert_same(&broker.ok(&["consume", &topic, "--format", "raw"]), &input);
        }
    }
    let messages = broker.json(&["topic", "describe", "chunks-none"])["ranges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|range| range["max_offset"].as_u64().unwrap())
        .sum::<u64>();
    assert_eq!(messages, 30);

    let output = folder.path().join("output");
    broker.ok(&["consume", "chunks-none", "--output-dir", output.to_str().unwrap()]);
    let mut names: Vec<_> =
        fs::read_dir(&output).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    let joined: Vec<u8> = names.iter().flat_map(|name| fs::read(name).unwrap()).collect();
    assert_eq!(names.len(), 30);
    assert_same(&joined, &input);
}

#[test]
fn queues_far_ahead_of_each_other_come_back_in_the_order_of_the_log() {
    let broker = TestBroker::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("input");
    broker.ok(&["topic", "create", "far", "--queues", "3", "--durability", "write"]);
    let mut all = Vec::new();
    // More than the merge holds in one queue, while another is read that comes before it.
    for (queue, bytes) in [("0", 40 << 20), ("1", 40 << 20), ("0", 3_000_000), ("2", 1)] {
        let input = noise(bytes, bytes as usize);
        fs::write(&file, &input).unwrap();
        let file = file.to_str().unwrap();
        broker.ok(&["produce", "far", file, "--queue", queue, "--split", "300KB"]);
        all.extend_from_slice(&input);
    }
    assert_same(&broker.ok(&["consume", "far"]), &all);
}

#[test]
fn line_over_the_limit_is_refused_and_what_stood_before_it_is_kept() {
    let broker = TestBroker::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("big");
    let mut input = b"one\ntwo\n".to_vec();
    input.resize(input.len() + (4 << 20) + 1, b'x');
    input.extend_from_slice(b"\nfour\n");
    fs::write(&file, &input).unwrap();
    let output = broker.run(&["produce", "big", file.to_str().unwrap(), "--json"]);
    let (code, said) = failure(&output);
    assert_eq!(code, 6, "{said}");
    assert!(said.contains("big: line 3 is longer than") && said.lines().count() == 1, "{said}");
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["messages"], 2);
    assert_eq!(broker.ok(&["consume", "big"]), b"one\ntwo\n");
}

#[test]
fn line_whose_key_cannot_be_stored_is_named_and_what_stood_before_it_is_kept() {
    let broker = TestBroker::start();
    let long = [&b"k".repeat(32 << 10)[..], b":v"].concat();
    for (topic, bad) in
        [("none", &b"v"[..]), ("bytes", b"\xff:v"), ("mark", b"a\x01:v"), ("long", &long)]
    {
        let input = [b"k:one\n", bad, b"\nk:three\n"].concat();
        let (code, said) = failure(&broker.run_with(&["produce", topic, "-K", ":", "-q"], &input));
        assert_eq!(code, 6, "{topic}: {said}");
        assert!(said.contains("standard input: line 2 "), "{topic}: {said}");
        assert!(said.contains("everything before it was sent"), "{topic}: {said}");
        assert_eq!(broker.ok(&["consume", topic]), b"one\n", "{topic}");
    }
}

#[test]
fn following_goes_from_what_is_there_to_what_comes() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "live", "--queues", "3"]);
    for n in 0..5 {
        broker.ok_with(&["produce", "live"], format!("old {n}\n").as_bytes());
    }
    let mut follower = broker.spawn(&["consume", "live", "--follow", "--max", "7"], Stdio::null());
    let mut out = follower.stdout.take().unwrap();
    let mut old = [0; 5 * 6];
    out.read_exact(&mut old).unwrap();
    for n in 0..2 {
        broker.ok_with(&["produce", "live"], format!("new {n}\n").as_bytes());
    }
    let mut new = String::new();
    out.read_to_string(&mut new).unwrap();
    assert_eq!(old, *b"old 0\nold 1\nold 2\nold 3\nold 4\n");
    assert_eq!(new, "new 0\nnew 1\n");
    assert!(follower.wait().unwrap().success());
}

#[test]
fn following_goes_on_in_queues_that_are_added() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "grows", "--queues", "1"]);
    broker.ok_with(&["produce", "grows"], b"old\n");
    let args = ["consume", "grows", "--follow", "--from", "latest", "--max", "1"];
    let mut follower = broker.spawn(&args, Stdio::null());
    let mut out = follower.stdout.take().unwrap();
    broker.ok(&["topic", "update", "grows", "--queues", "2"]);
    broker.ok_with(&["produce", "grows", "--queue", "1"], b"added\n");
    let mut new = String::new();
    out.read_to_string(&mut new).unwrap();
    assert_eq!(new, "added\n");
    assert!(follower.wait().unwrap().success());
}

#[test]
fn small_bodies_are_compressed_where_that_is_asked_for() {
    let broker = TestBroker::start();
    let line = [&b"words ".repeat(50)[..], b"\n"].concat();
    let mut plain_bytes = 0;
    for compression in ["none", "lz4", "zstd", "zlib"] {
        let topic = format!("c-{compression}");
        let lines = line.repeat(2);
        broker.ok_with(&["produce", &topic, "--compression", compression], &lines);
        assert_eq!(broker.ok(&["consume", &topic]), lines, "{compression}");
        let positions = broker.ok(&["consume", &topic, "--print", "position"]);
        let positions = String::from_utf8(positions).unwrap();
        let positions: Vec<u64> = positions.lines().map(|p| p.parse().unwrap()).collect();
        let record_bytes = positions[1] - positions[0];
        match compression {
            "none" => plain_bytes = record_bytes,
            _ => assert!(record_bytes + 150 < plain_bytes, "{compression}: {record_bytes} bytes"),
        }
    }
}

#[test]
fn lines_are_sent_as_they_come_not_when_the_input_ends() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "slow", "--queues", "1"]);
    let mut producer = broker.spawn(&["produce", "slow"], Stdio::piped());
    let mut input = producer.stdin.take().unwrap();
    for n in 0..3 {
        writeln!(input, "line {n}").unwrap();
        let args = ["consume", "slow", "--follow", "--max", "1", "--from", &n.to_string()];
        assert_eq!(broker.ok(&args), format!("line {n}\n").as_bytes());
    }
    drop(input);
    assert!(producer.wait().unwrap().success());
}

#[test]
fn fields_tags_and_formats_are_those_of_the_message() {
    let broker = TestBroker::start();
    let send =
        |args: &[&str], line: &[u8]| broker.ok_with(&[&["produce", "f"], args].concat(), line);
    broker.ok(&["topic", "create", "f", "--queues", "2"]);
    send(&["--key", "k1", "--tag", "paid", "--queue", "1", "--property", "a=b"], b"x\n");
    send(&["--tag", "lost", "--queue", "0"], b"\xff\n");
    send(&["--tag", "shipped", "--queue", "1"], b"z");

    assert_eq!(broker.ok(&["consume", "f", "--tag", "paid || shipped"]), b"x\nz");
    assert_eq!(broker.ok(&["consume", "f", "--queue", "0", "--format", "hex"]), b"ff\n");
    assert_eq!(
        broker.ok(&[
            "consume",
            "f",
            "--print",
            "queue,offset,key,tag,property:a,body",
            "--max",
            "1"
        ]),
        b"1\t0\tk1\tpaid\tb\tx\n"
    );
    assert_eq!(
        broker.ok(&["consume", "f", "--format", r"{queue}/{offset} {body}\n", "--from", "1"]),
        b"1/1 z\n"
    );
    let out = String::from_utf8(broker.ok(&["consume", "f", "--json"])).unwrap();
    let messages: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(messages.len(), 3);
    assert_eq!((&messages[0]["body"], &messages[0]["keys"][0]), (&"x".into(), &"k1".into()));
    assert_eq!(messages[1]["body_base64"], "/w==");
    assert_eq!(messages[2]["properties"]["LW_EOL"], "none");
    assert!(messages[2]["position"].as_u64() > messages[0]["position"].as_u64());
}

#[test]
fn topic_made_anew_under_a_slow_reader_is_not_gone_on_with() {
    let broker = TestBroker::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    for how in [&[][..], &["--follow"]] {
        broker.ok(&["topic", "create", "t", "--queues", "1", "--durability", "write"]);
        let produce = ["produce", "t", path, "--split", "1MiB"];
        fs::write(path, vec![b'o'; 40 << 20]).unwrap();
        broker.ok(&produce);
        let args = [&["consume", "t", "--format", "raw"], how].concat();
        let mut reader = broker.spawn(&args, Stdio::null());
        reader.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();

        broker.ok(&["topic", "delete", "t", "--yes"]);
        broker.ok(&["topic", "create", "t", "--queues", "1", "--durability", "write"]);
        fs::write(path, vec![b'n'; 41 << 20]).unwrap();
        broker.ok(&produce);
        let output = reader.wait_with_output().unwrap();
        let (code, said) = failure(&output);
        assert!(output.stdout.iter().all(|&b| b == b'o'), "{how:?}: {said}");
        assert!(code == 3 && said.contains("has been deleted"), "{how:?}: {said}");
        broker.ok(&["topic", "delete", "t", "--yes"]);
    }
}

#[test]
fn bad_record_ends_a_reader_with_a_way_to_go_on_behind_it() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "t", "--queues", "2"]);
    broker.ok_with(&["produce", "t", "--queue", "0"], b"0\n1\n");
    broker.store_bad("t");
    broker.ok_with(&["produce", "t", "--queue", "0"], b"3\n");
    let way_on = "longwire consume t --queue 0 --from 3";
    for how in [&[][..], &["--follow", "--timeout", "20s"]] {
        let output = broker.run(&[&["consume", "t"], how].concat());
        let (code, said) = failure(&output);
        assert!(code == 1 && said.contains(&format!("'{way_on}'")), "{how:?}: {code}, {said}");
        assert_eq!((output.stdout, said.lines().count()), (b"0\n1\n".to_vec(), 1), "{said}");
    }
    let way_on: Vec<_> = way_on.split(' ').skip(1).collect();
    assert_eq!(broker.ok(&way_on), b"3\n");
}

#[test]
fn topic_deleted_under_a_reader_ends_it_by_saying_so() {
    let broker = TestBroker::with(|config| config.broker.auto_create_topics = false);
    for how in [&[][..], &["--queue", "0", "--queue", "1"]] {
        broker.ok(&["topic", "create", "t", "--queues", "2"]);
        broker.ok_with(&["produce", "t"], b"a\n");
        let args = [&["consume", "t", "--follow", "--quiet"], how].concat();
        let mut reader = broker.spawn(&args, Stdio::null());
        reader.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
        broker.ok(&["topic", "delete", "t", "--yes"]);
        let (code, said) = failure(&reader.wait_with_output().unwrap());
        assert!(
            code == 3 && said.contains("the topic \"t\" that was read has been deleted"),
            "{code}: {said}"
        );
        assert!(!said.contains("UNKNOWN_TOPIC") && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn keys_come_back_with_their_blanks() {
    let broker = TestBroker::start();
    let lines = b"a  b=1\n x =2\n";
    broker.ok_with(&["produce", "t", "--key-separator", "="], lines);
    let mut back = broker.ok(&["consume", "t", "--format", r"{key}={body}\n"]);
    // Keys decide on the queues, whose messages may overtake each other on the way.
    if back.starts_with(b" x") {
        back.rotate_left(b" x =2\n".len());
    }
    assert_eq!(back, lines);
}

#[test]
fn beginning_can_be_a_time_an_offset_or_the_end() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "times", "--queues", "1"]);
    broker.ok_with(&["produce", "times"], b"a\nb\nc\n");
    assert_eq!(broker.ok(&["consume", "times", "--from", "1"]), b"b\nc\n");
    assert_eq!(broker.ok(&["consume", "times", "--from", "-1h"]), b"a\nb\nc\n");
    assert_eq!(broker.ok(&["consume", "times", "--from", "2999-01-01"]), b"");
    assert_eq!(broker.ok(&["consume", "times", "--from", "latest"]), b"");
    assert_eq!(broker.ok(&["consume", "times", "--from", "3"]), b"");
}

#[test]
fn offset_behind_the_end_is_refused_with_those_there_are() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "t", "--queues", "2"]);
    broker.ok_with(&["produce", "t", "--queue", "0"], b"a\nb\nc\n");
    for args in
        [&["--from", "4"][..], &["--from", "99", "--follow"], &["--from", "1", "--queue", "1"]]
    {
        let (code, said) = failure(&broker.run(&[&["consume", "t"], args].concat()));
        let range =
            if args.contains(&"--queue") { "0 to 0 for queue 1" } else { "0 to 3 for queue 0" };
        assert!(code == 2 && said.contains(range) && said.lines().count() == 1, "{args:?}: {said}");
    }
    // Enough that one queue has come so far; which has not is told to who goes on to wait there.
    assert_eq!(broker.ok(&["consume", "t", "--from", "2"]), b"c\n");
    let args = ["consume", "t", "--from", "2", "--follow", "--max", "1"];
    let said = failure(&broker.run(&args)).1;
    assert!(said.contains("queue 1 ") && said.lines().count() == 1, "{said}");
}

#[test]
fn offset_no_longer_retained_is_told_and_reading_begins_with_the_first_that_is() {
    let broker = TestBroker::with(|config| {
        config.storage.segment_bytes = 64 << 10;
        config.storage.retention_check_interval = Duration::from_millis(100);
    });
    broker.ok(&["topic", "create", "t", "--queues", "1", "--retention-bytes", "100KB"]);
    let line = "x".repeat(10_000) + "\n";
    broker.ok_with(&["produce", "t"], line.repeat(20).as_bytes());
    let waiting = Instant::now();
    while broker.json(&["topic", "describe", "t"])["ranges"][0]["min_offset"] == 0 {
        assert!(waiting.elapsed() < Duration::from_secs(20), "nothing is removed");
        std::thread::sleep(Duration::from_millis(10));
    }
    let args = ["consume", "t", "--from", "0", "--print", "offset", "--max", "1"];
    let output = broker.run(&args);
    let said = failure(&output).1;
    let first = str::from_utf8(&output.stdout).unwrap().trim();
    assert!(said.contains(&format!("before offset {first},")), "{said}");
    assert_eq!(failure(&broker.run(&[&args[..], &["--quiet"]].concat())), (0, String::new()));
}
