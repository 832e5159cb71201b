//! Consuming as a group.

use std::io::Read;
use std::process::Stdio;

use crate::broker::{TestBroker, failure};
use crate::commands::interrupt;

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
    assert_eq!(failure(&broker.run(&[&reset[..], &["1"]].concat())).0, 2, "not without --yes");
    assert_eq!(broker.ok(&["consume", "t", "--group", "g", "--timeout", "200ms"]), b"");

    broker.ok(&[&reset[..], &["1", "--yes"]].concat());
    assert_eq!(broker.ok(&["consume", "t", "--group", "g", "--max", "2"]), b"1\n2\n");
    broker.ok(&[&reset[..], &["-1h", "--yes"]].concat());
    assert_eq!(broker.ok(&["consume", "t", "--group", "g", "--max", "1"]), b"0\n");

    broker.ok(&["group", "delete", "g", "--yes"]);
    assert_eq!(failure(&broker.run(&["group", "describe", "g"])).0, 3);
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
    assert!(busy.0 == 1 && busy.1.contains("stop its consumers"), "{busy:?}");

    interrupt(&member);
    let (code, said) = failure(&member.wait_with_output().unwrap());
    assert_eq!((code, said.as_str()), (130, ""));
    let described = broker.json(&["group", "describe", "g"]);
    assert_eq!(described["members"].as_array().unwrap().len(), 0);
    let lag: u64 =
        described["queues"].as_array().unwrap().iter().map(|q| q["lag"].as_u64().unwrap()).sum();
    assert_eq!(lag, 0);
}
