//! A sync of the real broker fails: nothing is acknowledged any more, the process ends within a second
//! with a status of its own, and the next one serves what was acknowledged before.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use longwire_client::{Client, Durability, Message, NewTopic};
use longwire_tests::broker_process::{Addresses, BrokerCommand};
use longwire_tests::history::{History, MessageId, read_topic};
use longwire_tests::strace::Strace;
use longwire_tests::wait::{until, within};

const PATIENCE: Duration = Duration::from_secs(60);
const ENDS_MAX: Duration = Duration::from_secs(1);
const STORE_FAILED: i32 = 74;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_whose_sync_fails_acks_nothing_more_and_ends_within_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let command = BrokerCommand::new(folder.path().join("store")).on(Addresses::fixed());
    let mut broker = command.start();
    let client = Client::connect(broker.control()).await.unwrap();
    client.admin().create_topic(NewTopic::new("orders").queues(4)).await.unwrap();
    let producer = client.producer().durability(Durability::Flush).retry_unknown(false);
    let producer = producer.build().await.unwrap();
    let mut history = History::default();
    let send = async |number| {
        let id = MessageId { producer: 0, number };
        let message = Message::new("orders", id.body()).queue((number % 4) as u32);
        (id, within("an outcome", PATIENCE, producer.send(message)).await)
    };
    for number in 0..100 {
        let (id, outcome) = send(number).await;
        history.note(id, outcome);
    }
    assert_eq!(history.acked(), 100);
    let calls = folder.path().join("calls");
    let Some(failing) = Strace::fail(broker.pid(), "fdatasync", "EIO", calls) else {
        return;
    };
    let began = Instant::now();
    let (id, outcome) = send(100).await;
    let error = outcome.as_ref().expect_err("nothing is acknowledged after a failed sync");
    assert!(error.outcome_unknown(), "{error}");
    history.note(id, outcome);
    let (_, status) = until("the end of the broker", PATIENCE, || broker.ended());
    assert_eq!(status.code(), Some(STORE_FAILED), "{}", broker.log());
    assert!(began.elapsed() < ENDS_MAX, "it took {:?}", began.elapsed());
    assert!(broker.log().contains("the store has failed"), "{}", broker.log());
    drop(failing);

    let broker = command.start();
    let verified = history.verify(&read_topic(&client, "orders").await);
    assert_eq!((verified.acked, verified.unknown), (100, 1));
    broker.stop();
}
