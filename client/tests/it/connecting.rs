use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use longwire_client::{Client, Error, ErrorKind, Message, TopicQueue};
use tokio::net::TcpListener;

use crate::mock::Mock;

const PATIENCE: Duration = Duration::from_millis(100);
const SOON: Duration = Duration::from_secs(5);

/// Nothing has been done, and it was known soon; `address` is what did not answer.
fn assert_unreachable(error: &Error, address: &str, began: Instant) {
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(!error.outcome_unknown() && error.to_string().contains(address), "{error:?}");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_silent_port_is_given_up_in_time() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = port.local_addr().unwrap().to_string();
    let began = Instant::now();
    let client = Client::builder(&address).connect_timeout(PATIENCE);
    assert_unreachable(&client.connect().await.unwrap_err(), &address, began);
}

#[tokio::test]
async fn with_a_silent_broker_nothing_is_built_and_that_is_known_in_time() {
    let mock = Mock::start(&[("t", 1)]).await;
    let client = Client::builder(&mock.address).connect_timeout(PATIENCE).connect().await.unwrap();
    mock.state.silent.store(true, SeqCst);
    let began = Instant::now();
    assert_unreachable(&client.producer().build().await.unwrap_err(), "127.0.0.1", began);
    let consumer = client.consumer().assign([TopicQueue::new("t", 0)]);
    assert_unreachable(&consumer.build().await.unwrap_err(), "127.0.0.1", began);
}

#[tokio::test]
async fn a_data_plane_that_moved_is_found_also_if_something_else_listens_where_it_was() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mock = Mock::start(&[("t", 1)]).await;
    let there = other.local_addr().unwrap().to_string();
    let moved = std::mem::replace(&mut *mock.state.data_address.lock(), there);
    let client = mock.client().await;
    // Hangs up on whoever comes.
    tokio::spawn(async move { while other.accept().await.is_ok() {} });
    *mock.state.data_address.lock() = moved;
    let producer = client.producer().build().await.unwrap();
    producer.send(Message::new("t", "x")).await.unwrap();
}

#[tokio::test]
async fn what_a_client_cannot_be_is_said_before_anything_is_dialled() {
    let cases = [
        ("https://127.0.0.1:1", "c".to_owned(), "https"),
        ("127.0.0.1:1", "c".repeat(1025), "1025 bytes"),
    ];
    for (address, client_id, why) in cases {
        let error = Client::builder(address).client_id(client_id).connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}
