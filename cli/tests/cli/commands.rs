//! Topics, exit codes, and how commands end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::broker::{TestBroker, failure, longwire};

#[test]
fn topics_are_created_listed_changed_and_deleted() {
    let broker = TestBroker::start();
    let created = broker.json(&[
        "topic",
        "create",
        "orders",
        "--queues",
        "4",
        "--durability",
        "write",
        "--retention",
        "7d",
        "--retention-bytes",
        "1GiB",
    ]);
    assert_eq!((&created["queues"], &created["durability"]), (&4.into(), &"write".into()));
    assert_eq!(created["retention_ms"], 604_800_000);
    assert_eq!(created["retention_bytes"], 1 << 30);

    let (code, said) = failure(&broker.run(&["topic", "create", "orders"]));
    assert_eq!(code, 1);
    assert!(said.contains("--if-not-exists") && said.lines().count() == 1, "{said}");
    let (code, said) = failure(&broker.run(&["topic", "create", "orders", "--if-not-exists"]));
    assert!(code == 0 && said.starts_with("topic orders exists already: 4 queues, "), "{said}");

    let list = String::from_utf8(broker.ok(&["topic", "list"])).unwrap();
    assert!(list.starts_with("TOPIC") && list.contains("\norders"), "{list}");
    assert_eq!(broker.json(&["topic", "list"]).as_array().unwrap().len(), 1);
    assert!(broker.json(&["topic", "list", "--system"]).as_array().unwrap().len() > 1);

    let updated = broker.json(&["topic", "update", "orders", "--queues", "6"]);
    assert_eq!((&updated["queues"], &updated["durability"]), (&6.into(), &"write".into()));
    let described = broker.json(&["topic", "describe", "orders"]);
    assert_eq!(described["ranges"].as_array().unwrap().len(), 6);

    let (code, said) = failure(&broker.run(&["topic", "delete", "orders"]));
    assert_eq!(code, 2, "nobody can be asked: {said}");
    broker.ok(&["topic", "delete", "orders", "--yes"]);
    assert_eq!(failure(&broker.run(&["topic", "delete", "orders", "--yes"])).0, 3);
}

#[test]
fn exit_codes_say_what_went_wrong_in_one_line() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "t", "--queues", "2"]);
    for (code, args) in [
        (2, &["topic", "create", "no/such name"][..]),
        (2, &["topic", "update", "t", "--queues", "1"]),
        (2, &["produce", "t", "/"]),
        (2, &["consume", "t", "--group", "g", "--from", "17"]),
        (2, &["consume", "t", "--json", "--format", "hex"]),
        (2, &["--json", "consume", "t", "--print", "body"]),
        (2, &["consume", "t", "--json", "--output-dir", "."]),
        (2, &["produce", "%SYS%OFFSETS"]),
        (3, &["topic", "describe", "none"]),
        (3, &["consume", "none"]),
        (3, &["consume", "t", "--queue", "2"]),
        (3, &["group", "describe", "none"]),
        (3, &["produce", "t", "--queue", "9"]),
        (5, &["consume", "t", "--follow", "--max", "1", "--timeout", "50ms"]),
        (6, &["produce", "t", "--key-separator", ":"]),
    ] {
        let (found, said) = failure(&broker.run_with(args, b"line\n"));
        assert_eq!(found, code, "{args:?}: {said}");
        let error: Vec<_> = said.lines().filter(|line| line.starts_with("longwire: ")).collect();
        assert_eq!(error.len(), 1, "{args:?}: {said}");
        assert!(!said.contains("backtrace") && !said.contains("Error {"), "{said}");
    }
}

#[test]
fn empty_keys_and_tags_which_would_be_none_are_refused() {
    let broker = TestBroker::start();
    for option in ["--key", "--tag", "--key-separator", "--property"] {
        let (code, said) = failure(&broker.run_with(&["produce", "t", option, ""], b"line\n"));
        assert!(code == 2 && said.contains(option), "{code}: {said}");
    }
    assert!(broker.json(&["topic", "list"]).as_array().unwrap().is_empty(), "nothing was sent");
}

#[test]
fn broker_that_is_not_there_is_exit_code_4() {
    for args in [&["topic", "list"][..], &["produce", "t"], &["consume", "t"]] {
        let mut command = longwire();
        // Nothing can listen on port 1 without being root, and nothing does.
        let output = command.args(["--broker", "127.0.0.1:1"]).args(args).output().unwrap();
        let (code, said) = failure(&output);
        assert_eq!(code, 4, "{said}");
        assert!(said.contains("127.0.0.1:1") && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn broker_of_the_environment_is_a_default_and_an_empty_one_is_none() {
    let broker = TestBroker::start();
    let (code, said) = failure(&broker.run(&["topic", "create"]));
    assert!(code == 2 && !said.contains("--broker"), "a usage without it: {said}");
    broker.ok(&["topic", "list"]);

    // Whatever listens at the port where a broker is looked for.
    let output = longwire().env("LONGWIRE_BROKER", "").args(["topic", "list"]).output().unwrap();
    let (code, said) = failure(&output);
    assert!(code == 0 || said.contains("127.0.0.1:7651"), "{code}: {said}");
}

#[test]
fn address_of_ipv6_without_brackets_is_refused_with_how_it_is_written() {
    for address in ["::1:7651", "http://fe80::1:7651"] {
        let output = longwire().args(["--broker", address, "topic", "list"]).output().unwrap();
        let (code, said) = failure(&output);
        assert!(code == 2 && said.contains("in brackets, e.g. [::1]:7651"), "{code}: {said}");
    }
    let output = longwire().args(["--broker", "[::1]:1", "topic", "list"]).output().unwrap();
    assert_eq!(failure(&output).0, 4);
}

#[test]
fn port_that_is_no_control_plane_is_exit_code_4_and_the_right_one_is_named() {
    let broker = TestBroker::start();
    for port in [broker.data_address(), broker.http_address()] {
        let mut command = longwire();
        let output = command.args(["--broker", &port, "topic", "list"]).output().unwrap();
        let (code, said) = failure(&output);
        assert_eq!(code, 4, "{said}");
        assert!(said.contains("like a broker's control plane, whose port is 7651"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn reader_that_goes_away_ends_the_command_quietly() {
    let broker = TestBroker::start();
    let line = "x".repeat(1000) + "\n";
    broker.ok_with(&["produce", "t"], line.repeat(5000).as_bytes());
    let mut consumer = broker.spawn(&["consume", "t"], Stdio::null());
    let mut first = [0; 1001];
    let mut out = consumer.stdout.take().unwrap();
    out.read_exact(&mut first).unwrap();
    drop(out);
    let (code, said) = failure(&consumer.wait_with_output().unwrap());
    assert_eq!((code, said.as_str()), (141, ""), "as a shell sees 'cat'");
}

#[test]
fn reader_that_goes_away_ends_a_command_that_has_nothing_to_write() {
    let broker = TestBroker::start();
    broker.ok_with(&["produce", "t"], b"line\n");
    for how in [&["--follow"][..], &["--group", "g"]] {
        let mut consumer = broker.spawn(&[&["consume", "t"], how].concat(), Stdio::null());
        let mut out = consumer.stdout.take().unwrap();
        out.read_exact(&mut [0; 5]).unwrap();
        drop(out);
        let waiting = Instant::now();
        while consumer.try_wait().unwrap().is_none() {
            if waiting.elapsed() > Duration::from_secs(20) {
                consumer.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = consumer.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr), (Some(141), vec![]), "{how:?}");
    }
}

/// A producer to topic t that has sent these lines and waits for more.
fn producer_of(broker: &TestBroker, lines: &[&str]) -> (Child, ChildStdin) {
    broker.ok(&["topic", "create", "t"]);
    let mut producer = broker.spawn(&["produce", "t"], Stdio::piped());
    let mut input = producer.stdin.take().unwrap();
    let sent: String = lines.iter().map(|line| format!("{line}\n")).collect();
    input.write_all(sent.as_bytes()).unwrap();
    let max = lines.len().to_string();
    assert_eq!(broker.ok(&["consume", "t", "--follow", "--max", &max]), sent.as_bytes());
    (producer, input)
}

#[test]
fn interrupted_producer_keeps_and_counts_what_it_has_read() {
    let broker = TestBroker::start();
    let (producer, _input) = producer_of(&broker, &["a", "b"]);
    interrupt(&producer);
    let (code, said) = failure(&producer.wait_with_output().unwrap());
    assert_eq!(code, 130);
    assert!(said.starts_with("2 messages, "), "{said}");
    let said = failure(&broker.run_with(&["produce", "t"], b"c\n")).1;
    assert!(said.starts_with("1 message, "), "{said}");
}

/// A producer that has stored one message and cannot send another, for its broker is gone.
fn producer_left_alone() -> (Child, ChildStdin, impl Iterator<Item = String>) {
    let broker = TestBroker::start();
    let (mut producer, mut input) = producer_of(&broker, &["a"]);
    drop(broker);
    input.write_all(b"b\n").unwrap();
    let mut said = BufReader::new(producer.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.any(|line| line.contains("dialling again")), "it has something to send");
    (producer, input, said)
}

const LEFT_ALONE: &str =
    "1 message stored; 1 more may have been or not, as no acknowledgement came";

#[test]
fn interrupted_producer_without_a_broker_ends_soon_and_says_what_is_not_known() {
    let (mut producer, _input, mut said) = producer_left_alone();
    let interrupted = Instant::now();
    interrupt(&producer);
    assert!(said.any(|line| line.contains(LEFT_ALONE)));
    assert_eq!(producer.wait().unwrap().code(), Some(130));
    assert!(interrupted.elapsed() < Duration::from_secs(20), "{:?}", interrupted.elapsed());
}

#[test]
fn an_interruption_that_comes_several_times_at_once_is_one() {
    let (mut producer, _input, mut said) = producer_left_alone();
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(200) {
        interrupt(&producer);
    }
    assert!(said.any(|line| line.contains(LEFT_ALONE)));
    assert_eq!(producer.wait().unwrap().code(), Some(130));
}

#[test]
fn whatever_has_to_connect_first_can_be_interrupted_where_nothing_answers() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    for args in [
        &["produce", "t"][..],
        &["consume", "t"],
        &["consume", "t", "--group", "g"],
        &["bench", "produce"],
        &["bench", "consume"],
        &["bench", "end-to-end"],
    ] {
        let mut command = longwire();
        command.args(args).args(["--broker", &address]).stderr(Stdio::piped());
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let (_connection, _) = silent.accept().unwrap();
        let interrupted = Instant::now();
        interrupt(&child);
        let (code, said) = failure(&child.wait_with_output().unwrap());
        assert_eq!((code, said.as_str()), (130, ""), "{args:?}");
        assert!(interrupted.elapsed() < Duration::from_secs(20), "{args:?}");
    }
}

#[test]
fn helps_say_what_is_done_where_it_is_not_obvious() {
    for (args, what) in [
        (&["produce"][..], "An empty key is none"),
        (&["consume"], "a broker that is lost is waited for"),
        (&["bench", "produce"], "with --rate all that was due in that time"),
        (&["bench", "end-to-end"], "with --rate all that was due in that time"),
        (&["quickstart"], "else of the one this was built from"),
    ] {
        let help = longwire().args(args).arg("-h").output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let words: Vec<&str> = help.split_whitespace().collect();
        assert!(words.join(" ").contains(what), "{args:?}: {help}");
    }
}

#[test]
fn help_names_the_exit_codes_and_shells_get_completions() {
    let help = longwire().arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(
        help.contains("130  interrupted") && help.contains("unless\n       --timeout"),
        "{help}"
    );
    for shell in ["bash", "zsh", "fish"] {
        let script = longwire().args(["completions", shell]).output().unwrap();
        assert!(script.status.success());
        let script = String::from_utf8(script.stdout).unwrap();
        assert!(script.contains("quickstart") && script.contains("end-to-end"));
    }
}

/// Presses Ctrl-C.
pub(crate) fn interrupt(child: &Child) {
    signal(child, Signal::INT);
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}
