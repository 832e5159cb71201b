use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use longwire_client::{AckLevel, Compression, Durability, ErrorCode, ErrorKind, Message};
use longwire_proto::data::{ErrorResponse, response_header::Response};
use longwire_proto::record::RecordView;

use crate::mock::{Act, Mock, encode};

#[tokio::test]
async fn a_receipt_says_where_the_message_is_and_how_safe() {
    let mock = Mock::start(&[("t", 4)]).await;
    let producer = mock.client().await.producer().build().await.unwrap();
    let message = Message::new("t", "body").queue(2).key("k").tag("a").property("p", "v");
    let receipt = producer.send(message.clone()).await.unwrap();
    assert_eq!((&*receipt.topic, receipt.queue, receipt.offset), ("t", 2, 0));
    assert_eq!(receipt.level, AckLevel::Flushed);
    let next = producer.send(message.durability(Durability::Write)).await.unwrap();
    assert_eq!((next.offset, next.level), (1, AckLevel::Written));

    let record = mock.state.topics.lock()["t"][2][1].clone();
    let view = RecordView::parse(&record).unwrap();
    assert_eq!(view.position(), next.position);
    let properties: Vec<_> = view.properties().collect();
    assert_eq!(properties, [("TAGS", "a"), ("KEYS", "k"), ("p", "v")]);
    assert!(view.born_timestamp_ms() > 1_600_000_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn order_within_a_queue_survives_refusals_for_the_moment() {
    let mock = Mock::start(&[("t", 4)]).await;
    let requests = AtomicUsize::new(0);
    mock.on_produce(move |_| match requests.fetch_add(1, SeqCst) % 3 {
        0 => Act::Refuse(ErrorCode::StorageFull),
        _ => Act::Serve,
    });
    let producer = mock.client().await.producer().batch_bytes_max(2000).build().await.unwrap();
    let topic: Arc<str> = "t".into();
    for n in 0..500_u32 {
        let message = Message::new(topic.clone(), n.to_string()).queue(n % 4);
        let _dropped = producer.enqueue(message).await.unwrap();
    }
    producer.flush().await.unwrap();
    for queue in 0..4 {
        let expected: Vec<String> = (0..125).map(|n| (n * 4 + queue).to_string()).collect();
        assert_eq!(mock.bodies("t", queue), expected);
    }
}

#[tokio::test]
async fn of_a_frame_each_queue_is_settled_by_itself() {
    let mock = Mock::start(&[("t", 4)]).await;
    let mut acts = [Act::RefuseSome(|queue| match queue {
        0 => Some(ErrorCode::InvalidRecord),
        2 => None,
        _ => Some(ErrorCode::StorageFull),
    })]
    .into_iter();
    let (queues, sent) = mpsc::channel();
    mock.on_produce(move |request| {
        queues.send(request.runs.iter().map(|run| run.queue).collect::<Vec<_>>()).unwrap();
        acts.next().unwrap_or(Act::Serve)
    });
    let timeout = Duration::from_secs(5);
    let producer = mock.client().await.producer().delivery_timeout(timeout).build().await.unwrap();
    let mut deliveries = Vec::new();
    for queue in 0..4 {
        let message = Message::new("t", format!("for {queue}")).queue(queue);
        deliveries.push(producer.enqueue(message).await.unwrap());
    }
    for (queue, delivery) in deliveries.into_iter().enumerate() {
        let outcome = delivery.await;
        assert_eq!(outcome.is_ok(), queue != 0, "{outcome:?}");
    }
    assert_eq!(sent.recv().unwrap(), [0, 1, 2, 3], "one frame has them all");
    assert_eq!(mock.bodies("t", 0), [""; 0]);
    for queue in 1..4 {
        assert_eq!(mock.bodies("t", queue), [format!("for {queue}")]);
    }
}

/// While the broker takes nothing more and so many queues wait, each batch becomes a list of slices.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn records_of_many_queues_stay_in_their_batches_whatever_becomes_of_others() {
    const QUEUES: u32 = 4_000;
    let mock = Mock::start(&[("t", QUEUES as usize)]).await;
    let (all_are_enqueued, wait) = mpsc::channel();
    let mut requests = 0;
    mock.on_produce(move |_| {
        requests += 1;
        match requests {
            1 => {
                wait.recv().unwrap();
                Act::Serve
            }
            4 | 8 => Act::Drop,
            2..12 => Act::RefuseSome(|queue| match queue % 5 {
                0 => Some(ErrorCode::InvalidRecord),
                1 | 3 => Some(ErrorCode::StorageFull),
                _ => None,
            }),
            _ => Act::Serve,
        }
    });
    // So much smaller than usual that thousands of small messages count as much.
    let producer = mock.client().await.producer().buffer_bytes_max(8 << 20);
    let producer = producer.delivery_timeout(Duration::from_secs(20)).build().await.unwrap();
    let topic: Arc<str> = "t".into();
    for round in 0..8 {
        for queue in 0..QUEUES {
            // Of other lengths, so that another batch has another number of bytes.
            let body = format!("{round}.{queue}{}", ".".repeat((round * queue % 7) as usize));
            drop(producer.enqueue(Message::new(topic.clone(), body).queue(queue)).await.unwrap());
        }
    }
    all_are_enqueued.send(()).unwrap();
    let error = producer.flush().await.expect_err("some are refused for good");
    assert_eq!(error.code(), Some(ErrorCode::InvalidRecord), "{error}");
    for queue in 0..QUEUES {
        let bodies = mock.bodies("t", queue);
        let rounds = bodies.iter().map(|body| {
            let (round, rest) = body.split_once('.').unwrap();
            assert_eq!(rest.trim_end_matches('.'), queue.to_string());
            round.parse().unwrap()
        });
        // Where a connection was lost, what was stored is sent again.
        let mut firsts: Vec<u32> = Vec::new();
        rounds.for_each(|round| {
            if !firsts.contains(&round) {
                firsts.push(round)
            }
        });
        match queue % 5 {
            0 => assert!(firsts.is_sorted(), "{queue}: {firsts:?}"),
            _ => assert_eq!(firsts, Vec::from_iter(0..8), "{queue}"),
        }
    }
}

#[tokio::test]
async fn a_lost_connection_leaves_the_outcome_unknown_and_is_not_repeated_if_not_wanted() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.on_produce(|_| Act::ServeAndDrop);
    let client = mock.client().await;
    let producer = client.producer().retry_unknown(false).build().await.unwrap();
    let error = producer.send(Message::new("t", "once")).await.unwrap_err();
    assert!(error.outcome_unknown(), "{error}");
    assert!(error.to_string().contains("t/0"), "{error}");
    assert_eq!(mock.bodies("t", 0), ["once"]);

    mock.on_produce(|_| Act::Serve);
    producer.send(Message::new("t", "then")).await.expect("it connects again");
    assert_eq!(mock.bodies("t", 0), ["once", "then"]);
}

#[tokio::test]
async fn a_lost_connection_is_retried_by_default_and_may_store_a_message_twice() {
    let mock = Mock::start(&[("t", 1)]).await;
    let mut acts = [Act::ServeAndDrop, Act::Drop].into_iter();
    mock.on_produce(move |_| acts.next().unwrap_or(Act::Serve));
    let producer = mock.client().await.producer().build().await.unwrap();
    let receipt = producer.send(Message::new("t", "twice")).await.unwrap();
    assert_eq!(receipt.offset, 1);
    assert_eq!(mock.bodies("t", 0), ["twice", "twice"]);
    assert_eq!(*mock.state.connections.lock(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_refused_while_it_is_sent_to_fails_no_message() {
    let mock = Mock::start(&[("t", 256)]).await;
    let mut acts = [Act::Drop].into_iter();
    mock.on_produce(move |_| acts.next().unwrap_or(Act::Serve));
    let producer = mock.client().await.producer().build().await.unwrap();
    let code = ErrorCode::FrameTooLarge.number();
    let refusal = ErrorResponse { code, message: "as the test wants it".into() };
    *mock.state.farewell.lock() = encode(0, Response::Error(refusal), &[]);
    *mock.state.brief_connections.lock() = 6;
    let body = "x".repeat(64 << 10);
    for queue in 0..256 {
        let message = Message::new("t", body.clone()).queue(queue);
        let _dropped = producer.enqueue(message).await.unwrap();
    }
    producer.flush().await.unwrap();
    assert!((0..256).all(|queue| !mock.bodies("t", queue).is_empty()));
}

#[tokio::test]
async fn a_broker_that_never_answers_fails_the_message_in_time() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.on_produce(|_| Act::Hang);
    let producer = mock.client().await.producer();
    let producer = producer.delivery_timeout(Duration::from_millis(300)).build().await.unwrap();
    let begin = Instant::now();
    let error = producer.send(Message::new("t", "x")).await.unwrap_err();
    assert!(error.outcome_unknown() && error.is_retriable(), "{error}");
    assert!((250..5_000).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_broker_that_falls_silent_fails_every_message_in_time() {
    let mock = Mock::start(&[("t", 2)]).await;
    let producer = mock.client().await.producer();
    let producer = producer.delivery_timeout(Duration::from_millis(300)).build().await.unwrap();
    producer.send(Message::new("t", "x")).await.unwrap();
    mock.state.silent.store(true, SeqCst);
    // The first one meets the connection there was, the others find none.
    for queue in [0, 0, 1] {
        let begin = Instant::now();
        let error = producer.send(Message::new("t", "x").queue(queue)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!((250..2_000).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
    }
    let begin = Instant::now();
    let _dropped = producer.enqueue(Message::new("t", "x")).await.unwrap();
    producer.flush().await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn all_who_send_to_what_a_silent_broker_must_be_asked_for_fail_in_time() {
    let mock = Mock::start(&[("t", 1)]).await;
    let producer = mock.client().await.producer();
    let producer = producer.delivery_timeout(Duration::from_millis(300)).build().await.unwrap();
    producer.send(Message::new("t", "x")).await.unwrap();
    mock.state.silent.store(true, SeqCst);
    let begin = Instant::now();
    let new_topics = (0..20).map(|n| Message::new(format!("new{}", n % 2), "x"));
    let new_queues = (1..20).map(|queue| Message::new("t", "x").queue(queue));
    let sends = new_topics.chain(new_queues).map(|message| {
        let producer = producer.clone();
        tokio::spawn(async move { producer.enqueue(message).await.unwrap_err() })
    });
    for sent in sends.collect::<Vec<_>>() {
        let error = sent.await.unwrap();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert!(!error.outcome_unknown(), "{error:?}");
    }
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_lasting_refusal_for_the_moment_ends_with_the_delivery_timeout_and_stores_nothing() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.on_produce(|_| Act::Refuse(ErrorCode::StorageFull));
    let producer = mock.client().await.producer();
    let producer = producer.delivery_timeout(Duration::from_millis(200)).build().await.unwrap();
    let error = producer.send(Message::new("t", "x")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::StorageFull));
    assert!(error.is_retriable() && !error.outcome_unknown(), "{error}");
    let flushed = producer.flush().await.unwrap_err();
    assert_eq!(flushed.code(), Some(ErrorCode::StorageFull), "flush tells what failed before");
    producer.flush().await.expect("and tells it once");
}

#[tokio::test]
async fn a_lasting_refusal_is_final_at_once() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.on_produce(|_| Act::Refuse(ErrorCode::InvalidRecord));
    let producer = mock.client().await.producer().build().await.unwrap();
    let error = producer.send(Message::new("t", "x")).await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Refused, Some(ErrorCode::InvalidRecord)));
    assert!(!error.is_retriable() && !error.outcome_unknown());
}

#[tokio::test]
async fn an_oversize_answer_is_refused_without_being_read() {
    let mock = Mock::start(&[("t", 1)]).await;
    mock.on_produce(|_| Act::Raw(Bytes::from_static(&[0x7f, 0xff, 0xff, 0xff, 0, 0])));
    let client = mock.client().await;
    let producer = client.producer().retry_unknown(false).build().await.unwrap();
    let error = producer.send(Message::new("t", "x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Protocol);
    assert!(error.to_string().contains("2147483647"), "{error}");
}

#[tokio::test]
async fn what_can_never_be_sent_is_refused_before_it_is_buffered() {
    let mock = Mock::start(&[("t", 2)]).await;
    let producer = mock.client().await.producer().build().await.unwrap();
    let kind = async |message| producer.enqueue(message).await.unwrap_err().kind();
    assert_eq!(kind(Message::new("t", vec![0; (4 << 20) + 1])).await, ErrorKind::InvalidArgument);
    assert_eq!(kind(Message::new("no such/name", "")).await, ErrorKind::InvalidArgument);
    let odd = Message::new("t", "").property("a\u{1}b", "v");
    assert_eq!(kind(odd).await, ErrorKind::InvalidArgument);
    let large = Message::new("t", "").property("a", "v".repeat(40_000));
    assert_eq!(kind(large).await, ErrorKind::InvalidArgument);
    let error = producer.enqueue(Message::new("t", "").queue(7)).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownQueue));
    let error = producer.enqueue(Message::new("unknown", "")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
    producer.send(Message::new("t", vec![7; 4 << 20])).await.expect("the largest body goes");
    producer.close().await.unwrap();
}

#[tokio::test]
async fn all_who_send_to_a_new_queue_at_once_find_it() {
    let mock = Mock::start(&[("t", 1)]).await;
    let producer = mock.client().await.producer().build().await.unwrap();
    producer.send(Message::new("t", "known").queue(0)).await.unwrap();
    for queue in [1, 2] {
        mock.state.topics.lock().get_mut("t").unwrap().push(Vec::new());
        let send = |_| {
            let producer = producer.clone();
            tokio::spawn(async move { producer.send(Message::new("t", "new").queue(queue)).await })
        };
        for sent in (0..10).map(send).collect::<Vec<_>>() {
            assert_eq!(sent.await.unwrap().unwrap().queue, queue);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_buffer_makes_senders_wait_and_loses_nothing() {
    let mock = Mock::start(&[("t", 2)]).await;
    let producer = mock.client().await.producer().buffer_bytes_max(3000).build().await.unwrap();
    let tasks: Vec<_> = (0..20)
        .map(|task| {
            let producer = producer.clone();
            tokio::spawn(async move {
                for n in 0..20 {
                    let body = format!("{task}-{n}-{}", "x".repeat(300));
                    producer.enqueue(Message::new("t", body)).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    producer.close().await.unwrap();
    let bodies: HashSet<String> =
        mock.bodies("t", 0).into_iter().chain(mock.bodies("t", 1)).collect();
    assert_eq!(bodies.len(), 400);
}

#[tokio::test]
async fn a_full_buffer_does_not_linger() {
    let mock = Mock::start(&[("t", 100)]).await;
    let producer = mock.client().await.producer().linger(Duration::from_secs(60));
    let producer = producer.buffer_bytes_max(3000).build().await.unwrap();
    let enqueue = async {
        for n in 0..100 {
            let message = Message::new("t", vec![b'x'; 500]).queue(n);
            let _dropped = producer.enqueue(message).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(10), enqueue).await.expect("waits for the linger");
}

#[tokio::test]
async fn many_queues_travel_in_one_frame_and_linger_is_cut_short_by_flush() {
    let mock = Mock::start(&[("t", 100)]).await;
    let frames = Arc::new(AtomicUsize::new(0));
    let counted = frames.clone();
    mock.on_produce(move |_| {
        counted.fetch_add(1, SeqCst);
        Act::Serve
    });
    let producer = mock.client().await.producer().linger(Duration::from_secs(60));
    let producer = producer.build().await.unwrap();
    for queue in 0..100 {
        let _dropped = producer.enqueue(Message::new("t", "x").queue(queue)).await.unwrap();
    }
    let begin = Instant::now();
    producer.flush().await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert!(frames.load(SeqCst) <= 3, "{} frames", frames.load(SeqCst));
    assert!((0..100).all(|queue| mock.bodies("t", queue) == ["x"]));
}

#[tokio::test]
async fn without_a_connection_and_with_nothing_to_send_a_producer_rests() {
    // As many queues as a frame may have runs: the next such frame would have to wait a little.
    let mock = Mock::start(&[("t", 256)]).await;
    mock.on_produce(|_| Act::ServeAndDrop);
    let producer = mock.client().await.producer().linger(Duration::from_secs(60));
    let producer = producer.retry_unknown(false).build().await.unwrap();
    for queue in 0..256 {
        let _dropped = producer.enqueue(Message::new("t", "x").queue(queue)).await.unwrap();
    }
    assert!(producer.flush().await.unwrap_err().outcome_unknown());
    let metrics = tokio::runtime::Handle::current().metrics();
    let busy = metrics.worker_total_busy_duration(0);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let busy = metrics.worker_total_busy_duration(0) - busy;
    assert!(busy < Duration::from_millis(150), "busy for {busy:?} of 300 ms");
}

#[tokio::test]
async fn durations_without_end_are_as_good_as_any() {
    let mock = Mock::start(&[("t", 1)]).await;
    let mut acts = [Act::Refuse(ErrorCode::StorageFull)].into_iter();
    mock.on_produce(move |_| acts.next().unwrap_or(Act::Serve));
    let producer = mock.client().await.producer();
    let producer = producer.linger(Duration::MAX).delivery_timeout(Duration::MAX);
    let producer = producer.build().await.unwrap();
    let delivery = producer.enqueue(Message::new("t", "x")).await.unwrap();
    producer.flush().await.unwrap();
    delivery.await.unwrap();
}

#[tokio::test]
async fn what_would_linger_until_it_fails_is_not_built() {
    let client = Mock::start(&[]).await.client().await;
    for (linger, timeout, works) in [(1000, 1000, false), (1000, 1001, true), (0, 0, false)] {
        let [linger, timeout] = [linger, timeout].map(Duration::from_millis);
        let built = client.producer().linger(linger).delivery_timeout(timeout).build().await;
        let kind = built.map(drop).map_err(|error| error.kind());
        assert_eq!(kind, if works { Ok(()) } else { Err(ErrorKind::InvalidArgument) });
    }
}

#[tokio::test]
async fn large_bodies_are_compressed_with_rocketmqs_flags() {
    let mock = Mock::start(&[("t", 1)]).await;
    let producer =
        mock.client().await.producer().compression(Compression::Lz4).build().await.unwrap();
    producer.send(Message::new("t", "x".repeat(4095))).await.unwrap();
    producer.send(Message::new("t", "x".repeat(4096))).await.unwrap();
    let records = mock.state.topics.lock()["t"][0].clone();
    let flags = |n: usize| RecordView::parse(&records[n]).unwrap().sys_flag();
    assert_eq!((flags(0), flags(1)), (0, 0x101));
    assert!(records[1].len() < 300);
}

#[tokio::test]
async fn a_dropped_producer_still_sends_what_it_has() {
    let mock = Mock::start(&[("t", 1)]).await;
    let producer = mock.client().await.producer().linger(Duration::from_secs(60));
    let producer = producer.build().await.unwrap();
    let delivery = producer.enqueue(Message::new("t", "last words")).await.unwrap();
    drop(producer);
    delivery.await.unwrap();
    assert_eq!(mock.bodies("t", 0), ["last words"]);
}
