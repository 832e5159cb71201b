//! Members of a group.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use longwire_client::{
    Client, Consumer, ConsumerBuilder, ErrorCode, ErrorKind, StartAt, TagFilter, TopicQueue,
};
use longwire_proto::control::Assignment;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use crate::consumer::{SOON, committed, receive, silent, silent_for_a_while, until_committed};
use crate::mock::control::STREAMS_PER_CONNECTION_MAX;
use crate::mock::{JoinedMember, Mock, assignment};

/// A member that is assigned queue 0 of `t`, and the broker's side of it.
async fn joined(
    consumer: ConsumerBuilder,
    members: &mut UnboundedReceiver<JoinedMember>,
) -> (Consumer, JoinedMember) {
    let join = async {
        let member = members.recv().await.unwrap();
        member.assign.send(Ok(assignment(1, "t", &[0]))).await.unwrap();
        member
    };
    let (consumer, member) = tokio::join!(consumer.build(), join);
    (consumer.unwrap(), member)
}

#[tokio::test]
async fn queues_taken_away_are_committed_dropped_and_released() {
    let mock = Mock::start(&[("t", 2)]).await;
    mock.store("t", 0, &[b"a0", b"a1"]);
    mock.store("t", 1, &[b"b0", b"b1"]);
    let mut members = mock.members();
    let client = mock.client().await;
    let building = client.consumer().group("g").subscribe("t", TagFilter::all()).build();
    let (mut consumer, mut member) = tokio::join!(async { building.await.unwrap() }, async {
        let member = members.recv().await.unwrap();
        member.assign.send(Ok(assignment(1, "t", &[0, 1]))).await.unwrap();
        member
    });
    assert_eq!(member.topics, ["t"]);
    assert_eq!(member.released.recv().await, Some(1));
    receive(&mut consumer, 4).await;

    member.assign.send(Ok(assignment(2, "t", &[1]))).await.unwrap();
    let early = timeout(Duration::from_millis(100), member.released.recv()).await;
    assert!(early.is_err(), "the application may still work on what it has");
    mock.store("t", 0, &[b"a2"]);
    silent(&mut consumer).await;
    assert_eq!(timeout(SOON, member.released.recv()).await.unwrap(), Some(2));
    assert_eq!(consumer.assignment(), [TopicQueue::new("t", 1)]);
    assert_eq!(committed(&mock, 0), Some(2), "before the release");
    mock.store("t", 1, &[b"b2"]);
    assert_eq!(receive(&mut consumer, 1).await, ["b2"]);

    member.assign.send(Ok(assignment(3, "t", &[0, 1]))).await.unwrap();
    assert_eq!(receive(&mut consumer, 1).await, ["a2"]);
}

#[tokio::test]
async fn a_queue_taken_away_makes_room_for_those_that_stay() {
    let mock = Mock::start(&[("t", 2)]).await;
    mock.store("t", 0, &[&[0; 100_000]]);
    let mut members = mock.members();
    let client = mock.client().await;
    let consumer = client.consumer().group("g").subscribe("t", TagFilter::all());
    let building = consumer.prefetch_bytes_max(1).build();
    let (mut consumer, mut member) = tokio::join!(async { building.await.unwrap() }, async {
        let member = members.recv().await.unwrap();
        member.assign.send(Ok(assignment(1, "t", &[0, 1]))).await.unwrap();
        member
    });
    // The buffer is full of queue 0 then, and nothing is asked for.
    silent_for_a_while().await;
    member.assign.send(Ok(assignment(2, "t", &[1]))).await.unwrap();
    while member.released.recv().await != Some(2) {}
    mock.store("t", 1, &[b"stays"]);
    assert_eq!(receive(&mut consumer, 1).await, ["stays"]);
}

#[tokio::test]
async fn a_client_has_any_number_of_members() {
    let mock = Mock::start(&[("t", 1)]).await;
    let client = mock.client().await;
    let mut members = Vec::new();
    for _ in 0..=STREAMS_PER_CONNECTION_MAX {
        let member = client.consumer().group("g").subscribe("t", TagFilter::all()).build();
        members.push(timeout(SOON / 2, member).await.expect("the last one blocks").unwrap());
    }
}

#[tokio::test]
async fn a_broken_membership_is_joined_again_without_repeating_what_was_received() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.store("t", 0, &[b"0", b"1"]);
    let mut members = mock.members();
    let client = mock.client().await;
    let consumer = client.consumer().group("g").subscribe("t", TagFilter::all());
    let (mut consumer, member) = joined(consumer, &mut members).await;
    receive(&mut consumer, 2).await;
    drop(member);
    let again = timeout(SOON, members.recv()).await.unwrap().unwrap();
    assert_eq!(consumer.assignment(), []);
    again.assign.send(Ok(assignment(7, "t", &[0]))).await.unwrap();
    mock.store("t", 0, &[b"2"]);
    assert_eq!(receive(&mut consumer, 1).await, ["2"]);
}

#[tokio::test]
async fn a_member_that_has_gone_back_goes_on_there_after_its_membership_broke() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.store("t", 0, &[b"0", b"1", b"2", b"3"]);
    let mut members = mock.members();
    let client = mock.client().await;
    let consumer = client.consumer().group("g").subscribe("t", TagFilter::all());
    let (mut consumer, member) = joined(consumer.auto_commit(None), &mut members).await;
    receive(&mut consumer, 4).await;
    consumer.commit().await.unwrap();
    consumer.seek(&TopicQueue::new("t", 0), 1).unwrap();
    assert_eq!(receive(&mut consumer, 1).await, ["1"]);
    drop(member);
    let again = timeout(SOON, members.recv()).await.unwrap().unwrap();
    again.assign.send(Ok(assignment(7, "t", &[0]))).await.unwrap();
    assert_eq!(receive(&mut consumer, 2).await, ["2", "3"]);
    consumer.commit().await.unwrap();
    assert_eq!(committed(&mock, 0), Some(4));
}

#[tokio::test]
async fn a_member_that_comes_back_does_not_commit_what_the_application_still_works_on() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.store("t", 0, &[b"0", b"1"]);
    let mut members = mock.members();
    let client = mock.client().await;
    let consumer = client.consumer().group("g").subscribe("t", TagFilter::all());
    let consumer = consumer.auto_commit(Some(Duration::from_millis(20)));
    let (mut consumer, member) = joined(consumer, &mut members).await;
    receive(&mut consumer, 1).await;
    receive(&mut consumer, 1).await;
    until_committed(&mock, 1).await;
    drop(member);
    let mut again = timeout(SOON, members.recv()).await.unwrap().unwrap();
    again.assign.send(Ok(assignment(2, "t", &[0]))).await.unwrap();
    assert_eq!(timeout(SOON, again.released.recv()).await.unwrap(), Some(2));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(committed(&mock, 0), Some(1), "message 1 is still being worked on");

    // It is done with it while there is no membership.
    drop(again);
    let again = timeout(SOON, members.recv()).await.unwrap().unwrap();
    let rejoined = async {
        again.assign.send(Ok(assignment(3, "t", &[0]))).await.unwrap();
        until_committed(&mock, 2).await;
    };
    tokio::select! {
        biased;
        message = consumer.recv() => panic!("there is none: {message:?}"),
        () = rejoined => {}
    }
}

#[tokio::test]
async fn a_member_that_comes_back_misses_nothing_where_nothing_was_committed() {
    let mock = Mock::start(&[("t", 1)]).await;
    let mut members = mock.members();
    let client = mock.client().await;
    let consumer = client.consumer().group("g").subscribe("t", TagFilter::all());
    let consumer = consumer.auto_commit(None).start_at(StartAt::Latest);
    let (mut consumer, member) = joined(consumer, &mut members).await;
    drop(member);
    let again = timeout(SOON, members.recv()).await.unwrap().unwrap();
    mock.store("t", 0, &[b"in between"]);
    again.assign.send(Ok(assignment(2, "t", &[0]))).await.unwrap();
    assert_eq!(receive(&mut consumer, 1).await, ["in between"]);
}

#[tokio::test]
async fn a_member_that_begins_at_the_latest_reads_all_of_queues_that_are_added_later() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.store("t", 0, &[b"before"]);
    let mut members = mock.members();
    let client = mock.client().await;
    let consumer = client.consumer().group("g").subscribe("t", TagFilter::all());
    let consumer = consumer.auto_commit(None).start_at(StartAt::Latest);
    let (mut consumer, member) = joined(consumer, &mut members).await;
    mock.state.topics.lock().get_mut("t").unwrap().push(Vec::new());
    mock.store("t", 1, &[b"first", b"second"]);
    member.assign.send(Ok(assignment(2, "t", &[0, 1]))).await.unwrap();
    assert_eq!(receive(&mut consumer, 2).await, ["first", "second"]);
}

#[tokio::test]
async fn a_member_that_comes_back_repeats_what_it_was_told_is_not_committed() {
    for told_before_it_was_lost in [true, false] {
        let mock = Mock::start(&[("t", 1)]).await;
        mock.store("t", 0, &[b"0", b"1"]);
        let mut members = mock.members();
        let client = mock.client().await;
        let consumer = client.consumer().group("g").subscribe("t", TagFilter::all());
        let (mut consumer, member) = joined(consumer.auto_commit(None), &mut members).await;
        receive(&mut consumer, 1).await;
        consumer.commit().await.unwrap();
        receive(&mut consumer, 1).await;
        let refused = async || {
            let error = consumer.commit().await.unwrap_err();
            assert_eq!(error.code(), Some(ErrorCode::UnknownMember), "{error}");
        };
        if told_before_it_was_lost {
            *mock.state.refuse_commits.lock() = Some(ErrorCode::UnknownMember);
            refused().await;
        }
        drop(member);
        let again = timeout(SOON, members.recv()).await.unwrap().unwrap();
        if !told_before_it_was_lost {
            refused().await;
        }
        again.assign.send(Ok(assignment(2, "t", &[0]))).await.unwrap();
        *mock.state.refuse_commits.lock() = None;
        assert_eq!(receive(&mut consumer, 1).await, ["1"]);
        consumer.commit().await.unwrap();
        assert_eq!(committed(&mock, 0), Some(2));
    }
}

#[tokio::test]
async fn a_member_that_comes_back_to_a_broker_that_knows_less_begins_where_that_says() {
    for known in [None, Some(1)] {
        let mock = Mock::start(&[("t", 1)]).await;
        mock.store("t", 0, &[b"0", b"1", b"2"]);
        let mut members = mock.members();
        let client = mock.client().await;
        let consumer = client.consumer().group("g").subscribe("t", TagFilter::all());
        let (mut consumer, member) = joined(consumer.auto_commit(None), &mut members).await;
        receive(&mut consumer, 2).await;
        consumer.commit().await.unwrap();
        receive(&mut consumer, 1).await;
        drop(member);
        let again = timeout(SOON, members.recv()).await.unwrap().unwrap();
        mock.state.topics.lock().insert("t".into(), vec![Vec::new()]);
        mock.store("t", 0, &[b"new 0", b"new 1", b"new 2", b"new 3"]);
        mock.state.committed.lock().clear();
        if let Some(known) = known {
            mock.state.committed.lock().insert(("g".into(), "t".into(), 0), known);
        }
        again.assign.send(Ok(assignment(2, "t", &[0]))).await.unwrap();
        let first = format!("new {}", known.unwrap_or(0));
        assert_eq!(receive(&mut consumer, 1).await, [first]);
    }
}

#[tokio::test]
async fn a_pause_outlasts_the_membership_until_the_queue_is_resumed() {
    let mock = Mock::start(&[("t", 1)]).await;
    let mut members = mock.members();
    let client = mock.client().await;
    let consumer = client.consumer().group("g").subscribe("t", TagFilter::all());
    let (mut consumer, member) = joined(consumer, &mut members).await;
    let queue = [TopicQueue::new("t", 0)];
    consumer.pause(&queue);
    mock.store("t", 0, &[b"0"]);
    drop(member);
    let mut again = timeout(SOON, members.recv()).await.unwrap().unwrap();
    again.assign.send(Ok(assignment(2, "t", &[0]))).await.unwrap();
    assert_eq!(timeout(SOON, again.released.recv()).await.unwrap(), Some(2));
    silent(&mut consumer).await;
    consumer.resume(&queue);
    assert_eq!(receive(&mut consumer, 1).await, ["0"]);
}

#[tokio::test]
async fn a_first_join_that_fails_when_nobody_waits_for_it_any_more_is_tried_again() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.store("t", 0, &[b"0"]);
    let mut members = mock.members();
    let client = mock.client().await;
    // The broker takes so long that the consumer is there before its assignment.
    let consumer = client.consumer().group("g").subscribe("t", TagFilter::all()).build().await;
    let mut consumer = consumer.unwrap();
    let first = members.recv().await.unwrap();
    first.assign.send(Err(tonic::Status::unavailable("too late"))).await.unwrap();
    let again = timeout(SOON, members.recv()).await.unwrap().unwrap();
    again.assign.send(Ok(assignment(1, "t", &[0]))).await.unwrap();
    assert_eq!(receive(&mut consumer, 1).await, ["0"]);
}

#[tokio::test]
async fn a_refused_membership_fails_the_build() {
    let mock = Mock::start(&[("t", 1)]).await;
    let mut members = mock.members();
    let client = mock.client().await;
    let building = client.consumer().group("g").subscribe("t", TagFilter::all()).build();
    let refuse = async {
        let status = longwire_proto::status(ErrorCode::SystemTopic, "not this one");
        members.recv().await.unwrap().assign.send(Err(status)).await.unwrap();
    };
    let (consumer, ()) = tokio::join!(building, refuse);
    let error = consumer.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::SystemTopic));
    assert!(error.to_string().contains("\"g\"") && error.to_string().contains("not this one"));
}

#[tokio::test]
async fn a_topic_made_anew_is_read_from_its_beginning_also_where_its_queues_look_the_same() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.store("t", 0, &[b"old", b"older"]);
    let mut members = mock.members();
    let client = mock.client().await;
    let consumer = client.consumer().group("g").subscribe("t", TagFilter::all());
    let (mut consumer, mut member) = joined(consumer, &mut members).await;
    assert_eq!(receive(&mut consumer, 2).await, ["old", "older"]);
    mock.delete("t");
    mock.state.topics.lock().insert("t".into(), vec![Vec::new()]);
    mock.store("t", 0, &[b"new"]);
    let mut remade = assignment(2, "t", &[0]);
    remade.topics[0].created_position = 4096;
    member.assign.send(Ok(remade)).await.unwrap();
    while timeout(SOON, member.released.recv()).await.unwrap() != Some(2) {}
    assert_eq!(committed(&mock, 0), None, "of the old topic, and that would be of the new one");
    let error = timeout(SOON, consumer.recv()).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
    assert!(error.to_string().contains("made anew"), "{error}");
    assert_eq!(receive(&mut consumer, 1).await, ["new"]);
    consumer.commit().await.unwrap();
    assert_eq!(committed(&mock, 0), Some(1));
}

#[tokio::test]
async fn a_topic_made_anew_while_there_was_no_membership_is_read_from_its_beginning() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.store("t", 0, &[b"old", b"older"]);
    let mut members = mock.members();
    let client = mock.client().await;
    let consumer = client.consumer().group("g").subscribe("t", TagFilter::all()).auto_commit(None);
    let (mut consumer, member) = joined(consumer, &mut members).await;
    assert_eq!(receive(&mut consumer, 2).await, ["old", "older"]);
    drop(member);
    let again = timeout(SOON, members.recv()).await.unwrap().unwrap();
    mock.delete("t");
    mock.state.topics.lock().insert("t".into(), vec![Vec::new()]);
    mock.store("t", 0, &[b"0", b"1", b"2"]);
    let mut remade = assignment(1, "t", &[0]);
    remade.topics[0].created_position = 4096;
    again.assign.send(Ok(remade)).await.unwrap();
    let error = timeout(SOON, consumer.recv()).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
    assert_eq!(receive(&mut consumer, 3).await, ["0", "1", "2"]);
}

#[tokio::test]
async fn a_member_is_told_once_that_a_topic_has_been_deleted() {
    let mock = Mock::start(&[("t", 2)]).await;
    let mut members = mock.members();
    let client = mock.client().await;
    let consumer = client.consumer().group("g").subscribe("t", TagFilter::all());
    let (mut consumer, member) = joined(consumer, &mut members).await;
    let gone = |generation| {
        let unknown_topics = vec!["t".to_owned()];
        Assignment { topics: Vec::new(), unknown_topics, ..assignment(generation, "t", &[]) }
    };
    for generation in [2, 3] {
        member.assign.send(Ok(gone(generation))).await.unwrap();
    }
    mock.delete("t");
    let error = timeout(SOON, consumer.recv()).await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
    silent(&mut consumer).await;
    assert_eq!(consumer.assignment(), []);
}

#[tokio::test]
async fn a_silent_broker_does_not_keep_a_member_from_closing() {
    let mock = Mock::start(&[("t", 2)]).await;
    mock.store("t", 0, &[b"0"]);
    let mut members = mock.members();
    let client = Client::builder(&mock.address).connect_timeout(Duration::from_millis(200));
    let consumer = client.connect().await.unwrap().consumer();
    let consumer = consumer.group("g").subscribe("t", TagFilter::all());
    let (mut consumer, mut member) = joined(consumer, &mut members).await;
    receive(&mut consumer, 1).await;
    mock.state.silent.store(true, SeqCst);
    member.assign.send(Ok(assignment(2, "t", &[0, 1]))).await.unwrap();
    // It then asks where queue 1 begins.
    while member.released.recv().await != Some(2) {}
    let error = timeout(SOON, consumer.close()).await.expect("waits").unwrap_err();
    assert!(error.kind() == ErrorKind::Timeout && error.outcome_unknown(), "{error}");
    timeout(SOON, member.assign.closed()).await.expect("is still a member");
}
