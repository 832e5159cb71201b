use longwire_client::{ErrorKind, Message, TopicQueue};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::consumer::SOON;
use crate::mock::{Act, Mock};

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn what_a_runtime_leaves_behind_fails() {
    let (first, second) = (runtime(), runtime());
    let mock = second.block_on(Mock::start(&[("t", 2)]));
    let (sent, mut is_sent) = mpsc::unbounded_channel();
    mock.on_produce(move |_| {
        sent.send(()).unwrap();
        Act::Hang
    });
    let (producer, mut consumer, in_flight, waiting) = first.block_on(async {
        let client = mock.client().await;
        let producer = client.producer().buffer_bytes_max(10_000).build().await.unwrap();
        let in_flight = producer.enqueue(Message::new("t", "x").queue(0)).await.unwrap();
        is_sent.recv().await.unwrap();
        let waiting = producer.enqueue(Message::new("t", vec![0; 9000]).queue(0)).await.unwrap();
        let consumer = client.consumer().assign([TopicQueue::new("t", 0)]);
        (producer, consumer.build().await.unwrap(), in_flight, waiting)
    });
    second.block_on(async {
        let crowded = producer.clone();
        let message = Message::new("t", vec![0; 9000]).queue(1);
        let crowded = tokio::spawn(async move { crowded.send(message).await.unwrap_err() });
        let recv = tokio::spawn(async move { consumer.recv().await.unwrap_err() });
        tokio::task::yield_now().await;
        first.shutdown_background();
        let fails = async {
            assert!(in_flight.await.unwrap_err().outcome_unknown());
            let waited = waiting.await.unwrap_err();
            assert_eq!((waited.kind(), waited.outcome_unknown()), (ErrorKind::Closed, false));
            assert_eq!(crowded.await.unwrap().kind(), ErrorKind::Closed);
            let late = producer.send(Message::new("new", "x")).await;
            assert_eq!(late.unwrap_err().kind(), ErrorKind::Closed);
            producer.close().await.unwrap_err();
            assert_eq!(recv.await.unwrap().kind(), ErrorKind::Closed);
        };
        timeout(SOON, fails).await.unwrap();
    });
}
