//! Consuming as a group.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::broker::{TestBroker, failure};
use crate::commands::interrupt;

/// Waits until the group has committed this offset in queue 0 of its topic.
fn until_committed(broker: &TestBroker, group: &str, offset: u64) {
    let waiting = Instant::now();
    loop {
        let output = broker.run(&["group", "describe", group, "--json"]);
        // It is made by the first who joins.
        let described: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if described["queues"][0]["committed"] == offset {
            return;
        }
        assert!(waiting.elapsed() < Duration::from_secs(20), "{described}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn group_goes_on_where_it_stopped() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "t", "--queues", "1"]);
    broker.ok_with(&["produce", "t"], b"0\n1\n2\n3\n4\n");
    assert_eq!(broker.ok(&["consume", "t", "--group", "g", "--max", "2"]), b"0\n1\n");
    assert_eq!(broker.ok(&["consume", "t", "--group", "g", "--timeout", "500ms"]), b"2\n3\n4\n");
    assert_eq!(broker.ok(&["consume", "t", "--group", "g", "--timeout", "200ms"]), b"");

    let described = broker.json(&["group", "describe", "g"]);
    assert_eq!(described["queues"][0]["committed"], 5);
    assert_eq!(described["queues"][0]["lag"], 0);
    let table = String::from_utf8(broker.ok(&["group", "describe", "g"])).unwrap();
    assert!(table.starts_with("g: 0 members"), "{table}");
    let list = broker.json(&["group", "list"]);
    assert_eq!((&list[0]["name"], &list[0]["members"]), (&"g".into(), &0.into()));
}

#[test]
fn group_is_moved_only_when_that_is_wanted() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "t", "--queues", "1"]);
    broker.ok_with(&["produce", "t"], b"0\n1\n2\n");
    broker.ok(&["consume", "t", "--group", "g", "--max", "3"]);
    let reset = ["group", "reset", "g", "--topic", "t", "--to"];
    let planned = broker.json(&[&reset[..], &["1", "--dry-run"]].concat());
    assert_eq!(planned["queues"][0]["from"], 3);
    assert_eq!(planned["queues"][0]["to"], 1);
    let (code, said) = failure(&broker.run(&[&reset[..], &["1"]].concat()));
    assert!(code == 2 && said.contains("in 1 queue cannot be undone; add --yes"), "{said}");
    assert_eq!(broker.ok(&["consume", "t", "--group", "g", "--timeout", "200ms"]), b"");

    broker.ok(&[&reset[..], &["1", "--yes"]].concat());
    assert_eq!(broker.ok(&["consume", "t", "--group", "g", "--max", "2"]), b"1\n2\n");
    broker.ok(&[&reset[..], &["-1h", "--yes"]].concat());
    assert_eq!(broker.ok(&["consume", "t", "--group", "g", "--max", "1"]), b"0\n");

    broker.ok(&["group", "delete", "g", "--yes"]);
    assert_eq!(failure(&broker.run(&["group", "describe", "g"])).0, 3);
}

#[test]
fn offset_that_a_queue_does_not_have_is_wrong_usage_and_one_queue_is_moved_alone() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "t", "--queues", "2"]);
    broker.ok_with(&["produce", "t", "--queue", "1"], b"0\n1\n2\n");
    broker.ok(&["consume", "t", "--group", "g", "--max", "3"]);
    let reset = ["group", "reset", "g", "--topic", "t", "--to", "2", "--yes"];
    let (code, said) = failure(&broker.run(&reset));
    assert!(code == 2 && said.contains("t/0: offset 2"), "{code}: {said}");
    assert!(said.contains("--queue N") && said.lines().count() == 1, "{said}");
    let (code, said) = failure(&broker.run(&[&reset[..], &["--queue", "0"]].concat()));
    assert!(code == 2 && !said.contains("--queue"), "{code}: {said}");
    broker.ok(&[&reset[..], &["--queue", "1"]].concat());
    assert_eq!(broker.ok(&["consume", "t", "--group", "g", "--max", "1"]), b"2\n");
}

#[test]
fn interrupted_member_commits_what_it_has_written_and_leaves() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "t", "--queues", "2"]);
    broker.ok_with(&["produce", "t"], b"a\nb\n");
    let mut member = broker.spawn(&["consume", "t", "--group", "g"], Stdio::null());
    let mut written = [0; 4];
    member.stdout.as_mut().unwrap().read_exact(&mut written).unwrap();
    assert_eq!(&written, b"a\nb\n");
    let busy = failure(&broker.run(&["group", "delete", "g", "--yes"]));
    assert!(busy.0 == 1 && busy.1.matches("stop").count() == 1, "{busy:?}");

    interrupt(&member);
    let (code, said) = failure(&member.wait_with_output().unwrap());
    assert_eq!((code, said.as_str()), (130, ""));
    let described = broker.json(&["group", "describe", "g"]);
    assert_eq!(described["members"].as_array().unwrap().len(), 0);
    let lag: u64 =
        described["queues"].as_array().unwrap().iter().map(|q| q["lag"].as_u64().unwrap()).sum();
    assert_eq!(lag, 0);
}

#[test]
fn member_killed_before_the_first_message_loses_none_behind_where_it_began() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "t", "--queues", "1"]);
    broker.ok_with(&["produce", "t"], b"old\n");
    let args = ["consume", "t", "--group", "g", "--from", "latest"];
    let mut member = broker.spawn(&args, Stdio::null());
    until_committed(&broker, "g", 1);
    member.kill().unwrap();
    member.wait().unwrap();

    broker.ok_with(&["produce", "t"], b"new\n");
    let new = broker.ok(&[&args[..], &["--max", "1", "--timeout", "20s"]].concat());
    assert_eq!(new, b"new\n");
}

#[test]
fn what_the_tag_leaves_out_is_committed_while_more_is_awaited() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "t", "--queues", "1"]);
    // Tags of the same hash: the broker tells at once of what it passes on, elsewhere it waits a while.
    broker.ok_with(&["produce", "t", "--tag", "BB"], b"0\n1\n2\n");
    let args = ["consume", "t", "--group", "g", "--tag", "Aa"];
    let mut member = broker.spawn(&args, Stdio::null());
    until_committed(&broker, "g", 3);
    broker.ok_with(&["produce", "t", "--tag", "Aa"], b"3\n");
    broker.ok_with(&["produce", "t", "--tag", "BB"], b"4\n");
    until_committed(&broker, "g", 5);
    member.kill().unwrap();
    assert_eq!(member.wait_with_output().unwrap().stdout, b"3\n");
}

#[test]
fn bad_record_ends_a_member_with_a_way_past_it_and_what_was_written_committed() {
    let broker = TestBroker::start();
    broker.ok(&["topic", "create", "t", "--queues", "2"]);
    broker.ok_with(&["produce", "t", "--queue", "0"], b"0\n1\n");
    broker.store_bad("t");
    broker.ok_with(&["produce", "t", "--queue", "0"], b"3\n");
    let args = ["consume", "t", "--group", "g", "--timeout", "20s"];
    let output = broker.run(&args);
    assert_eq!(output.stdout, b"0\n1\n");
    let (code, said) = failure(&output);
    let way_on = "longwire group reset g --topic t --queue 0 --to 3";
    assert!(code == 1 && said.contains(way_on) && said.lines().count() == 1, "{said}");
    until_committed(&broker, "g", 2);

    let way_on: Vec<_> = way_on.split(' ').skip(1).chain(["--yes"]).collect();
    broker.ok(&way_on);
    assert_eq!(broker.ok(&[&args[..], &["--max", "1"]].concat()), b"3\n");
}
