//! Benchmarks of a broker: what they report is consistent, and they leave nothing behind.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::broker::{TestBroker, failure, longwire};
use crate::commands::{interrupt, signal};

/// A figure of a report.
fn number(report: &Value, name: &str) -> f64 {
    report.pointer(name).and_then(Value::as_f64).unwrap_or_else(|| panic!("{name}: {report}"))
}

/// What holds of every report.
fn check(report: &Value) {
    for times in ["latency_us", "ack_us", "send_delay_us"] {
        let Some(times) = report.get(times).filter(|times| times.is_object()) else {
            continue;
        };
        let figures = ["p50", "p90", "p99", "p999", "p9999", "max"].map(|q| times[q].as_f64());
        assert!(figures.is_sorted() && figures[0].is_some(), "{report}");
    }
    let (messages, seconds) = (number(report, "/messages"), number(report, "/seconds"));
    assert!(messages > 0.0 && seconds > 0.0, "{report}");
    assert!(
        (number(report, "/messages_per_s") * seconds / messages - 1.0).abs() < 0.01,
        "{report}"
    );
    let mb_per_s = number(report, "/bytes") / 1e6 / seconds;
    // It is given to three decimals.
    assert!((number(report, "/mb_per_s") - mb_per_s).abs() < 0.001 + mb_per_s / 100.0, "{report}");
    assert_eq!(
        (&report["interrupted"], &report["errors"]),
        (&false.into(), &Value::Object(Default::default()))
    );
    assert!(number(report, "/client_cpu_seconds") > 0.0);
    let points = report.pointer("/timeline/messages_per_s").unwrap().as_array().unwrap();
    assert!(!points.is_empty(), "{report}");
}

fn topics(broker: &TestBroker) -> usize {
    broker.json(&["topic", "list"]).as_array().unwrap().len()
}

#[test]
fn produce_counts_what_was_stored_and_removes_its_topic() {
    let broker = TestBroker::start();
    let report = broker.json(&[
        "bench",
        "produce",
        "-n",
        "2000",
        "--warmup",
        "0s",
        "--clients",
        "3",
        "--size",
        "100",
        "--queues",
        "4",
        "--durability",
        "flush",
    ]);
    check(&report);
    assert_eq!((&report["mode"], &report["load"]["loop"]), (&"produce".into(), &"closed".into()));
    assert_eq!((number(&report, "/messages"), number(&report, "/bytes")), (2e3, 2e5));
    assert_eq!(number(&report, "/latency_us/count"), 2e3);
    assert_eq!((&report["level"], &report["durability"]), (&"flushed".into(), &"flush".into()));
    assert!(report["latency_of"].as_str().unwrap().contains("queueing"), "{report}");
    assert_eq!(topics(&broker), 0);
}

#[test]
fn many_queues_have_more_messages_in_flight_unless_told_otherwise() {
    let broker = TestBroker::start();
    let in_flight = |more: &[&str]| {
        let once = ["bench", "produce", "-n", "1", "--warmup", "0s"];
        let report = broker.json(&[&once[..], more].concat());
        number(&report, "/load/in_flight")
    };
    assert_eq!(in_flight(&[]), 4096.0);
    assert_eq!(in_flight(&["--queues", "300"]), 4800.0);
    assert_eq!(in_flight(&["--queues", "300", "--in-flight", "7"]), 7.0);
}

#[test]
fn open_loop_sends_what_its_rate_says_whatever_the_broker_does() {
    let broker = TestBroker::start();
    let report = broker.json(&[
        "bench",
        "produce",
        "--rate",
        "400",
        "--duration",
        "1s",
        "--warmup",
        "250ms",
        "--clients",
        "2",
        "--durability",
        "write",
        "--keep-topic",
        "--quiet",
    ]);
    check(&report);
    // The schedule decides how many; the time they took can only be longer.
    assert_eq!((number(&report, "/messages"), number(&report, "/load/rate")), (400.0, 400.0));
    assert_eq!(number(&report, "/send_delay_us/count"), 400.0);
    assert!(number(&report, "/seconds") >= 0.99 && number(&report, "/messages_per_s") <= 405.0);
    assert!(report["latency_of"].as_str().unwrap().contains("intended send time"));
    // The warm-up has been sent, too.
    let topic = report["topic"].as_str().unwrap();
    let described = broker.json(&["topic", "describe", topic]);
    let stored: u64 = described["ranges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["max_offset"].as_u64().unwrap())
        .sum();
    assert_eq!((stored, topics(&broker)), (500, 1));
}

#[test]
fn client_cpu_is_of_what_was_measured_alone() {
    let broker = TestBroker::start();
    for mode in ["produce", "end-to-end"] {
        // Sends as fast as it can for a second, and then one message that counts.
        let once = ["bench", mode, "-n", "1", "--warmup", "1s", "--in-flight", "16"];
        let report = broker.json(&[&once[..], &["--durability", "write"]].concat());
        assert!(number(&report, "/client_cpu_seconds") < 0.2, "{mode}: {report}");
    }
}

#[test]
fn keys_compression_and_sizes_reach_the_messages() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "t", "--queues", "3", "--durability", "write"]);
    let report = broker.json(&[
        "bench",
        "produce",
        "--topic",
        "t",
        "-n",
        "300",
        "--warmup",
        "0s",
        "--keys",
        "7",
        "--size",
        "500..2KiB",
        "--compression",
        "lz4",
        "--batch",
        "64KiB",
        "--linger",
        "1ms",
    ]);
    check(&report);
    let lines = broker.ok(&["consume", "t", "--print", "key,queue,body"]);
    let lines = String::from_utf8(lines).unwrap();
    let rows: Vec<Vec<&str>> = lines.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows.len(), 300);
    let bytes: usize = rows.iter().map(|row| row[2].len()).sum();
    assert_eq!(number(&report, "/bytes"), bytes as f64);
    assert!(rows.iter().all(|row| (500..=2048).contains(&row[2].len())));
    let placed: std::collections::BTreeSet<_> = rows.iter().map(|row| (row[0], row[1])).collect();
    assert_eq!(placed.len(), 7, "each key in one queue: {placed:?}");
    let statistics = broker.json(&["topic", "describe", "t"]);
    assert_eq!(statistics["ranges"].as_array().unwrap().len(), 3, "the topic was not touched");
}

#[test]
fn consume_reads_all_of_its_own_or_a_given_topic() {
    let broker = TestBroker::start();
    let fill = ["bench", "consume", "-n", "3000", "--size", "64", "--clients", "2", "--json"];
    let output = broker.run(&fill);
    assert_eq!(failure(&output), (0, String::new()));
    let own: Value = serde_json::from_slice(&output.stdout).unwrap();
    check(&own);
    assert_eq!((number(&own, "/messages"), number(&own, "/bytes")), (3e3, 192e3));
    assert_eq!((&own["mode"], topics(&broker)), (&"consume".into(), 0));

    let over = broker.json(&["bench", "consume", "-n", "100", "--duration", "300ms"]);
    assert!(number(&over, "/messages") > 100.0, "over and over: {over}");

    broker.ok(&["topic", "create", "t", "--queues", "2"]);
    broker.ok_with(&["produce", "t", "--key-separator", ":"], b"a:one\nb:two\nc:three\n");
    let given = broker.json(&["bench", "consume", "--topic", "t"]);
    check(&given);
    assert_eq!((number(&given, "/messages"), number(&given, "/bytes")), (3.0, 11.0));
    assert!(given["load"].is_null());
    let again = broker.json(&["bench", "consume", "--topic", "t", "--duration", "300ms"]);
    assert!(number(&again, "/messages") > 3.0, "begins again: {again}");
    let some = broker.json(&["bench", "consume", "--topic", "t", "-n", "2"]);
    assert_eq!(number(&some, "/messages"), 2.0);
    assert_eq!(topics(&broker), 1);
}

#[test]
fn end_to_end_verifies_every_message_also_among_those_of_others() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "t", "--queues", "4", "--durability", "write"]);
    broker.ok_with(&["produce", "t"], b"not of this run\n");
    let report = broker.json(&[
        "bench",
        "end-to-end",
        "--topic",
        "t",
        "--rate",
        "500",
        "-n",
        "500",
        "--warmup",
        "100ms",
        "--clients",
        "2",
        "--consumers",
        "3",
        "--size",
        "32..200",
    ]);
    check(&report);
    let found = &report["integrity"];
    assert_eq!(number(&report, "/messages"), 500.0);
    // With those of the warm-up.
    assert_eq!((number(found, "/acknowledged"), number(found, "/received")), (550.0, 550.0));
    for name in ["lost", "duplicated", "out_of_order"] {
        assert_eq!(found[name], 0, "{report}");
    }
    assert_eq!(found["verified"], true);
    for name in ["/ack_us/count", "/latency_us/count", "/send_delay_us/count"] {
        assert_eq!(number(&report, name), 500.0, "{name}");
    }
}

#[test]
fn message_that_comes_twice_is_noticed_and_makes_the_run_fail() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "t", "--queues", "1", "--durability", "write"]);
    let load = ["bench", "end-to-end", "--topic", "t", "--rate", "200", "--warmup", "0s"];
    let child = broker.spawn(&[&load[..], &["--duration", "4s", "--json"]].concat(), Stdio::null());
    wait_for_messages(&broker);
    // However long the next takes, the run is not over before.
    signal(&child, Signal::STOP);
    let folder = tempfile::tempdir().unwrap();
    broker.ok(&["consume", "t", "--max", "1", "--output-dir", folder.path().to_str().unwrap()]);
    let copy = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let copy = copy.display().to_string();
    broker.ok(&["produce", "t", "--split", "file", &copy]);
    signal(&child, Signal::CONT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = &report["integrity"];
    assert_eq!((&found["duplicated"], &found["verified"]), (&1.into(), &false.into()), "{report}");
    assert_eq!((&found["received"], &found["lost"]), (&800.into(), &0.into()), "{report}");
}

#[test]
fn files_are_written_and_well_formed() {
    let broker = TestBroker::start();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (hdr, html) = (path("a.hgrm"), path("a.html"));
    let table = broker.ok(&[
        "bench",
        "end-to-end",
        "-n",
        "1000",
        "--warmup",
        "0s",
        "--hdr",
        &hdr,
        "--html",
        &html,
        "--durability",
        "write",
    ]);
    let table = String::from_utf8(table).unwrap();
    for word in ["p50", "p90", "p99", "p99.9", "p99.99", "max", "client CPU", "verified: each"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    let hdr = fs::read_to_string(hdr).unwrap();
    assert!(hdr.trim_start().starts_with("Value") && hdr.contains("#[Mean"), "{hdr}");
    assert!(hdr.contains("Total count    =         1000]"), "{hdr}");
    let html = fs::read_to_string(html).unwrap();
    assert!(html.starts_with("<!DOCTYPE html>") && html.trim_end().ends_with("</html>"));
    assert_eq!((html.matches("<svg").count(), html.matches("</svg>").count()), (4, 4));
    for outside in ["http://", "https://", "src=", "@import", "NaN", "inf"] {
        assert!(!html.contains(outside), "{outside}");
    }
    for tag in ["table", "tr", "td", "th", "h2", "p"] {
        let (opened, closed) = (format!("<{tag}"), format!("</{tag}>"));
        let opened = html.matches(&format!("{opened}>")).count()
            + html.matches(&format!("{opened} ")).count();
        assert_eq!(opened, html.matches(&closed).count(), "{tag}");
    }
}

#[test]
fn single_message_is_seen_between_labels_that_differ() {
    let broker = TestBroker::start();
    let folder = tempfile::tempdir().unwrap();
    let html = folder.path().join("a.html");
    let args = ["bench", "produce", "-n", "1", "--warmup", "0s", "--html"];
    broker.ok(&[&args[..], &[html.to_str().unwrap()]].concat());
    let html = fs::read_to_string(html).unwrap();
    let plots: Vec<&str> = html.split("<svg").skip(1).collect();
    assert_eq!(plots.len(), 4);
    for plot in plots {
        let plot = plot.split("</svg>").next().unwrap();
        // Throughput has two points where this one message took long.
        let line = plot.split("points=\"").nth(1).and_then(|points| points.split('"').next());
        let is_line = line.is_some_and(|points| points.contains(' '));
        assert!(is_line || plot.contains("<circle class=\"point\""), "{plot}");
        for anchored in ["text-anchor=\"end\">", "text-anchor=\"middle\">"] {
            let labels = plot.split(anchored).skip(1);
            let labels: Vec<&str> = labels.map(|text| text.split('<').next().unwrap()).collect();
            let different: std::collections::BTreeSet<_> = labels.iter().collect();
            assert_eq!(different.len(), labels.len(), "{labels:?}");
        }
    }
}

#[test]
fn files_of_an_earlier_run_are_replaced_whole_or_left_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.hgrm");
    let earlier = "of an earlier run\n".repeat(10_000);
    fs::write(&file, &earlier).unwrap();
    let file_name = file.to_str().unwrap();
    let bench = ["bench", "produce", "-n", "1", "--warmup", "0s", "--hdr", file_name];
    let new = folder.path().join("new.html");
    let mut command = longwire();
    let output = command.args(bench).arg("--html").arg(&new).args(["--broker", "127.0.0.1:1"]);
    let output = output.output().unwrap();
    assert_eq!(failure(&output).0, 4);
    assert_eq!(fs::read_to_string(&file).unwrap(), earlier);
    assert!(!fs::exists(&new).unwrap(), "of a run that has measured nothing");

    let broker = TestBroker::start();
    broker.ok(&bench);
    let written = fs::read_to_string(&file).unwrap();
    assert!(written.trim_start().starts_with("Value"), "{written}");
    assert!(!written.contains("earlier"), "{written}");
    broker.ok(&[&bench[..7], &["/dev/null"]].concat());
}

#[test]
#[cfg(target_os = "linux")]
fn file_that_cannot_be_written_loses_nothing_but_itself() {
    let broker = TestBroker::start();
    let folder = tempfile::tempdir().unwrap();
    let html = folder.path().join("a.html");
    let args = ["bench", "produce", "-n", "100", "--warmup", "0s", "--json", "--hdr", "/dev/full"];
    let output = broker.run(&[&args[..], &["--html", html.to_str().unwrap()]].concat());
    let (code, said) = failure(&output);
    assert!(code == 1 && said.contains("cannot write /dev/full"), "{code}: {said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(number(&report, "/messages"), 100.0);
    assert!(fs::read_to_string(&html).unwrap().starts_with("<!DOCTYPE html>"));
}

#[test]
fn interrupted_run_reports_what_it_has_measured_and_removes_its_topic() {
    let broker = TestBroker::start();
    let args =
        ["bench", "produce", "--warmup", "0s", "--duration", "1h", "--rate", "500", "--json"];
    let child = broker.spawn(&args, Stdio::null());
    wait_for_messages(&broker);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(failure(&output).0, 130);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["interrupted"], true);
    assert!(number(&report, "/messages") >= 20.0, "{report}");
    assert_eq!(topics(&broker), 0);
}

#[test]
fn errors_are_counted_by_code_and_end_a_hopeless_run() {
    let broker = TestBroker::with(|config| config.broker.auto_create_topics = false);
    broker.ok(&["topic", "create", "t", "--durability", "write"]);
    let load = ["bench", "produce", "--topic", "t", "--rate", "1k", "--warmup", "0s"];
    let child =
        broker.spawn(&[&load[..], &["--duration", "30s", "--json"]].concat(), Stdio::null());
    wait_for_messages(&broker);
    broker.ok(&["topic", "delete", "t", "--yes"]);
    let output = child.wait_with_output().unwrap();
    let (code, said) = failure(&output);
    assert_eq!(code, 3, "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(number(&report, "/errors/UNKNOWN_TOPIC") >= 1_000.0, "{report}");
    assert!(number(&report, "/messages") >= 20.0, "{report}");
    assert_eq!(report["interrupted"], false);
}

/// Returns once a run is well under way.
fn wait_for_messages(broker: &TestBroker) {
    let began = Instant::now();
    while stored(broker) < 20 {
        assert!(began.elapsed() < Duration::from_secs(30), "nothing has been stored");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Messages in all topics.
fn stored(broker: &TestBroker) -> u64 {
    let topics = broker.json(&["topic", "list"]);
    let in_topic = |topic: &Value| -> u64 {
        let described = broker.json(&["topic", "describe", topic["name"].as_str().unwrap()]);
        let ranges = described["ranges"].as_array().unwrap();
        ranges.iter().map(|range| range["max_offset"].as_u64().unwrap()).sum()
    };
    topics.as_array().unwrap().iter().map(in_topic).sum()
}

#[test]
fn what_cannot_be_measured_is_refused_in_one_line_and_leaves_no_topic() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "empty", "--queues", "2"]);
    for (code, word, args) in [
        (1, "nothing to read", &["consume", "--topic", "empty"][..]),
        (2, "32", &["end-to-end", "--size", "31"]),
        (2, "cannot share", &["end-to-end", "--queues", "2", "--consumers", "3"]),
        (2, "cannot share", &["consume", "--queues", "2", "--clients", "3"]),
        (2, "share 1 queue;", &["consume", "--queues", "1", "--clients", "3"]),
        (2, "cannot write", &["produce", "--hdr", "/"]),
        (3, "none", &["produce", "--topic", "none"]),
        (3, "none", &["consume", "--topic", "none"]),
        (3, "none", &["end-to-end", "--topic", "none"]),
    ] {
        let (found, said) = failure(&broker.run(&[&["bench"], args].concat()));
        assert_eq!((found, said.lines().count()), (code, 1), "{args:?}: {said}");
        assert!(said.contains(word), "{args:?}: {said}");
    }
    assert_eq!(topics(&broker), 1);
    let unreachable = longwire().args(["--broker", "127.0.0.1:1", "bench", "produce"]).output();
    assert_eq!(failure(&unreachable.unwrap()).0, 4);
}

#[test]
fn damaged_record_ends_the_reading_of_its_queue_with_a_report_and_the_error() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "t", "--queues", "2", "--durability", "write"]);
    broker.ok_with(&["produce", "t", "--queue", "0"], b"0\n1\n");
    broker.store_bad("t");
    broker.ok_with(&["produce", "t", "--queue", "0"], b"3\n");
    broker.ok_with(&["produce", "t", "--queue", "1"], b"a\nb\nc\n");
    for (least, length) in [(5.0, &[][..]), (6.0, &["--duration", "300ms"])] {
        let began = Instant::now();
        let args = [&["bench", "consume", "--topic", "t", "--json"], length].concat();
        let output = broker.run(&args);
        assert!(began.elapsed() < Duration::from_secs(10), "{length:?}: {:?}", began.elapsed());
        let (code, said) = failure(&output);
        assert!(code == 1 && said.contains("offset 2 of queue t/0"), "{length:?}: {code}, {said}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["errors"]["CorruptRecord"], 1, "{report}");
        assert!(number(&report, "/messages") >= least, "{report}");
    }
}
