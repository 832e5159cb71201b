use super::super::filter::TagFilter;
use super::super::queues::Start;
use super::*;
use crate::TopicQueue;
use longwire_proto::limits::QUEUES_PER_TOPIC_MAX;
use longwire_proto::record::{Placement, RecordDraft, seal};
use prost::Message;

const LIMITS: FetchLimits = FetchLimits { prefetch_bytes_max: 32 << 20, in_flight_max: 64 };

fn queues(count: u32) -> Queues {
    let mut queues = Queues::default();
    for queue in 0..count {
        assign(&mut queues, "t", queue);
    }
    queues
}

fn assign(queues: &mut Queues, topic: &str, queue: u32) {
    let name = TopicQueue::new(topic, queue);
    let source =
        Source { name: name.clone(), filter: TagFilter::all().into(), created_position: None };
    let start = Start::new(name, None, 0, None);
    queues.assign(start, source.into());
}

fn fetches(queues: &mut Queues, limits: &FetchLimits) -> Vec<Plan> {
    let next = || match queues.plan(limits) {
        Next::Fetch(plan) => Some(plan),
        _ => None,
    };
    std::iter::from_fn(next).collect()
}

fn record(queue: u32, offset: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let draft = RecordDraft { topic: "t", queue, body: &[0; 1000], ..RecordDraft::default() };
    draft.encode(&mut bytes).unwrap();
    let store_host = "127.0.0.1:1".parse().unwrap();
    seal(&mut bytes, &Placement { offset, position: 0, store_timestamp_ms: 0, store_host });
    bytes
}

fn answer(index: u32, bytes: usize, next_offset: u64) -> FetchResponse {
    let result = FetchResult { index, bytes: bytes as u32, next_offset, ..Default::default() };
    FetchResponse { results: vec![result] }
}

fn hand_out(queues: &mut Queues) -> Vec<(u32, u64)> {
    let mut received = Vec::new();
    while let Some(mut taken) = queues.take() {
        let before = received.len();
        let error = taken.read(1, &mut 1, &mut received);
        if !queues.give_back(taken, error) {
            received.truncate(before);
        }
    }
    received.iter().map(|message| (message.queue(), message.offset())).collect()
}

#[test]
fn every_queue_is_in_one_fetch_and_the_fetches_fit_the_limits() {
    for count in [1, 128, 129, 10_000, QUEUES_PER_TOPIC_MAX] {
        let mut queues = queues(count);
        let plans = fetches(&mut queues, &LIMITS);
        let mut asked: Vec<u32> = plans
            .iter()
            .flat_map(|plan| plan.request().topics.remove(0).queues)
            .map(|queue| queue.queue)
            .collect();
        asked.sort_unstable();
        if count <= 63 * 1024 {
            assert!(asked.into_iter().eq(0..count), "{count} queues");
        }
        assert!(plans.len() <= LIMITS.in_flight_max);
        assert!(queues.reserved_bytes <= LIMITS.prefetch_bytes_max / 2, "{count} queues");
        for plan in plans {
            assert!(plan.request().encoded_len() < FRAME_HEADER_BYTES_MAX - 64);
            queues.missed(plan, false);
        }
        assert_eq!((queues.reserved_bytes, queues.outstanding), (0, 0));
    }
}

/// 1000 queues, of which no more than 45 fit a fetch.
fn queues_with_large_headers() -> Queues {
    let mut queues = Queues::default();
    let tags = Arc::new(TagFilter::any((0..256).map(|n| format!("tag-{n}"))));
    for n in 0..1000 {
        let name = TopicQueue::new(format!("{n:0>127}"), 0);
        let source = Source { name: name.clone(), filter: tags.clone(), created_position: None };
        queues.assign(Start::new(name, None, 0, None), source.into());
    }
    queues
}

#[test]
fn long_topic_names_and_many_tags_still_fit_a_header() {
    let mut queues = queues_with_large_headers();
    let plans = fetches(&mut queues, &LIMITS);
    assert!(plans.len() > 8);
    for plan in &plans {
        assert!(plan.request().encoded_len() < FRAME_HEADER_BYTES_MAX - 32);
    }
}

#[test]
fn what_arrives_after_a_seek_or_a_loss_is_dropped() {
    let mut queues = queues(2);
    let plan = fetches(&mut queues, &LIMITS).remove(0);
    queues.seek(&TopicQueue::new("t", 0), 7).unwrap();
    let anew = fetches(&mut queues, &LIMITS);
    let asked = &anew[0].request().topics[0].queues;
    assert_eq!((anew.len(), asked.len(), asked[0].offset), (1, 1, 7));

    let bytes = record(0, 0);
    let response = answer(0, bytes.len(), 1);
    queues.arrived(plan, response, &bytes.into(), Reset::Earliest).unwrap();
    assert_eq!(hand_out(&mut queues), []);
    assert_eq!(queues.position(&TopicQueue::new("t", 0)), Some(7));
    queues.give_up(|queue| queue.queue == 1);
    assert_eq!(queues.forget().0, 1);
    assert_eq!(fetches(&mut queues, &LIMITS).len(), 1, "only queue 1 is left to ask for");
    assert_eq!(queues.buffered_bytes, 0);
}

#[test]
fn a_seek_while_messages_are_being_handed_out_takes_them_back() {
    let mut queues = queues(1);
    let plan = fetches(&mut queues, &LIMITS).remove(0);
    let bytes = [record(0, 0), record(0, 1)].concat();
    let response = answer(0, bytes.len(), 2);
    queues.arrived(plan, response, &bytes.into(), Reset::Earliest).unwrap();
    let mut taken = queues.take().unwrap();
    let mut received = Vec::new();
    assert!(taken.read(1, &mut 1, &mut received).is_none());
    queues.seek(&TopicQueue::new("t", 0), 0).unwrap();
    assert!(!queues.give_back(taken, None));
    assert_eq!((queues.buffered_bytes, queues.position(&TopicQueue::new("t", 0))), (0, Some(0)));
}

#[test]
fn queues_take_turns_in_being_handed_out() {
    let mut queues = queues(2);
    let plan = fetches(&mut queues, &LIMITS).remove(0);
    let (a, b) = (record(0, 0), record(1, 0));
    let mut response = answer(0, a.len(), 1);
    response.results.extend(answer(1, b.len(), 1).results);
    queues.arrived(plan, response, &[a, b].concat().into(), Reset::Earliest).unwrap();
    assert_eq!(hand_out(&mut queues), [(0, 0), (1, 0)]);
    let plan = fetches(&mut queues, &LIMITS).remove(0);
    let offsets: Vec<_> = plan.request().topics[0].queues.iter().map(|q| q.offset).collect();
    assert_eq!(offsets, [1, 1]);
}

#[test]
fn many_small_fetches_are_packed_anew() {
    let mut queues = queues(100);
    let mut outstanding = fetches(&mut queues, &LIMITS);
    for n in 0_u32.. {
        assert!(n < 20, "never packed");
        queues.seek(&TopicQueue::new("t", n), 0).unwrap();
        match queues.plan(&LIMITS) {
            Next::Fetch(plan) => outstanding.push(plan),
            Next::Repack => break,
            Next::Wait => panic!("a changed queue has to wait"),
        }
    }
    outstanding.into_iter().for_each(|plan| queues.missed(plan, false));
    assert_eq!(fetches(&mut queues, &LIMITS).len(), 1);
}

#[test]
fn fetches_whose_headers_are_full_are_not_packed_anew_before_there_are_more() {
    let mut queues = queues_with_large_headers();
    let mut outstanding = fetches(&mut queues, &LIMITS);
    let asked: usize = outstanding.iter().map(|plan| plan.entries.len()).sum();
    assert_eq!(asked, 1000, "all at once");
    let packed = outstanding.len();
    for n in 0..=packed {
        queues.seek(&TopicQueue::new(format!("{n:0>127}"), 0), 1).unwrap();
        match queues.plan(&LIMITS) {
            Next::Fetch(plan) => outstanding.push(plan),
            Next::Repack => break,
            Next::Wait => panic!("a changed queue has to wait"),
        }
    }
    assert!(outstanding.len() > packed + 8, "packed anew with {} fetches", outstanding.len());
}

#[test]
fn a_changed_queue_does_not_wait_where_only_one_fetch_may_be_in_flight() {
    let limits = FetchLimits { in_flight_max: 1, ..LIMITS };
    let mut queues = queues(4);
    let outstanding = fetches(&mut queues, &limits).remove(0);
    assert!(matches!(queues.plan(&limits), Next::Wait));
    queues.seek(&TopicQueue::new("t", 0), 7).unwrap();
    assert!(matches!(queues.plan(&limits), Next::Repack));
    queues.missed(outstanding, false);
    assert_eq!(fetches(&mut queues, &limits).remove(0).entries.len(), 4);
}

#[test]
fn what_does_not_fit_the_one_fetch_in_flight_waits_for_it() {
    let limits = FetchLimits { in_flight_max: 1, ..LIMITS };
    let mut queues = queues_with_large_headers();
    let outstanding = fetches(&mut queues, &limits).remove(0);
    // How many fetches all of them take is not known any more.
    assign(&mut queues, "t", 0);
    assert!(matches!(queues.plan(&limits), Next::Repack));
    queues.missed(outstanding, false);
    assert_eq!(fetches(&mut queues, &limits).len(), 1);
    assert!(matches!(queues.plan(&limits), Next::Wait), "once, and not for ever");
}

#[test]
fn a_queue_that_changes_while_a_fetch_asks_for_it_is_fetched_once_from_its_new_place() {
    let queue = TopicQueue::new("t", 1);
    let asked = |queues: &mut Queues| -> Vec<(u32, u64)> {
        let plans = fetches(queues, &LIMITS);
        let queues = plans.iter().flat_map(|plan| plan.request().topics.remove(0).queues);
        queues.map(|queue| (queue.queue, queue.offset)).collect()
    };
    for delayed in [false, true] {
        let mut queues = queues(2);
        let outstanding = fetches(&mut queues, &LIMITS).remove(0);
        queues.seek(&queue, 7).unwrap();
        queues.seek(&queue, 9).unwrap();
        queues.missed(outstanding, delayed);
        queues.undelay();
        let mut next = asked(&mut queues);
        next.sort_unstable();
        assert_eq!(next, [(0, 0), (1, 9)]);
    }
    let mut queues = queues(2);
    queues.pause(&queue);
    assert_eq!(asked(&mut queues), [(0, 0)]);
    assert!(!queues.wants());
    queues.resume(&queue);
    assert_eq!(asked(&mut queues), [(1, 0)]);
}

#[test]
fn a_pause_of_a_queue_that_stands_still_holds_when_it_is_moved() {
    let mut queues = queues(1);
    let queue = TopicQueue::new("t", 0);
    let plan = fetches(&mut queues, &LIMITS).remove(0);
    let mut bad = answer(0, 0, 1);
    bad.results[0].code = ErrorCode::CorruptLog.number();
    queues.arrived(plan, bad, &Bytes::new(), Reset::Earliest).unwrap();
    queues.pause(&queue);
    queues.seek(&queue, 7).unwrap();
    assert!(!queues.wants());
    queues.resume(&queue);
    assert_eq!(fetches(&mut queues, &LIMITS)[0].request().topics[0].queues[0].offset, 7);
}

#[test]
fn an_answer_that_contradicts_its_fetch_is_refused_and_asked_for_again() {
    let bytes = Bytes::from(record(0, 0));
    let len = bytes.len();
    let mut twice = answer(0, len, 1);
    twice.results.extend(answer(0, 0, 1).results);
    for response in [answer(5, len, 1), answer(0, len - 1, 1), answer(0, len, 0), twice] {
        let mut queues = queues(1);
        let plan = fetches(&mut queues, &LIMITS).remove(0);
        assert!(queues.arrived(plan, response, &bytes, Reset::Earliest).is_err());
        assert_eq!(fetches(&mut queues, &LIMITS).len(), 0, "not at once");
        queues.undelay();
        assert_eq!(fetches(&mut queues, &LIMITS).len(), 1);
    }
}

#[test]
fn what_is_passed_over_is_done_once_nothing_before_it_is_open() {
    let mut queues = queues(1);
    let queue = TopicQueue::new("t", 0);
    let plan = fetches(&mut queues, &LIMITS).remove(0);
    let bytes = record(0, 0);
    let response = answer(0, bytes.len(), 1);
    queues.arrived(plan, response, &bytes.into(), Reset::Earliest).unwrap();
    let plan = fetches(&mut queues, &LIMITS).remove(0);
    queues.arrived(plan, answer(0, 0, 50), &Bytes::new(), Reset::Earliest).unwrap();
    assert_eq!(queues.position(&queue), Some(0));
    assert_eq!(hand_out(&mut queues), [(0, 0)]);
    assert_eq!(queues.position(&queue), Some(50));
    let uncommitted = |queues: &Queues| queues.uncommitted()[0].1.offset;
    assert_eq!(uncommitted(&queues), 0, "message 0 may still be worked on");
    queues.done();
    assert_eq!(uncommitted(&queues), 50);
}

#[test]
fn what_was_fetched_before_a_lasting_error_is_handed_out_before_it() {
    let mut queues = queues(1);
    let bytes = record(0, 0);
    let plan = fetches(&mut queues, &LIMITS).remove(0);
    let response = answer(0, bytes.len(), 1);
    queues.arrived(plan, response, &bytes.into(), Reset::Earliest).unwrap();
    let mut bad = answer(0, 0, 1);
    bad.results[0].code = ErrorCode::CorruptLog.number();
    let plan = fetches(&mut queues, &LIMITS).remove(0);
    queues.arrived(plan, bad.clone(), &Bytes::new(), Reset::Earliest).unwrap();
    assert!(queues.take_error().is_none(), "one message lies before it");
    assert_eq!(hand_out(&mut queues), [(0, 0)]);
    queues.undelay();
    let plan = fetches(&mut queues, &LIMITS).remove(0);
    queues.arrived(plan, bad, &Bytes::new(), Reset::Earliest).unwrap();
    let error = queues.take_error().unwrap();
    assert_eq!(error.record().map(|record| record.offset), Some(1));
}
