//! Order across lost connections, where a network delivers what was sent long after it was lost.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use longwire_broker::Config;
use longwire_client::{Durability, Message, NewTopic, TopicQueue};
use longwire_tests::embedded;
use longwire_tests::wait::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

const PATIENCE: Duration = Duration::from_secs(60);

/// Carries the first connection's hello, holds back what comes next, and cuts the client's side off.
/// Carries all others. What was held back arrives when `deliver` says so; completes when the broker
/// has ended that connection.
async fn network(listener: TcpListener, broker: SocketAddr, deliver: oneshot::Receiver<()>) {
    let (mut client, _) = listener.accept().await.unwrap();
    let mut lost = TcpStream::connect(broker).await.unwrap();
    let mut buffer = vec![0; 1 << 20];
    let hello = client.read(&mut buffer).await.unwrap();
    lost.write_all(&buffer[..hello]).await.unwrap();
    let hello = lost.read(&mut buffer).await.unwrap();
    client.write_all(&buffer[..hello]).await.unwrap();
    let held_back = client.read(&mut buffer).await.unwrap();
    drop(client);
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut onward = TcpStream::connect(broker).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut onward).await });
        }
    });
    deliver.await.unwrap();
    let _ = lost.write_all(&buffer[..held_back]).await;
    // The broker's answer, if it takes what is late; then the end.
    let _ = lost.shutdown().await;
    while lost.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
}

#[tokio::test]
async fn what_arrives_late_over_a_lost_connection_does_not_come_after_what_was_sent_since() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let advertised = listener.local_addr().unwrap().to_string();
    let advertise = |config: &mut Config| config.listen.advertised_data = Some(advertised);
    let (broker, client) = embedded::start(folder.path(), advertise).await;
    let (deliver, delivered) = oneshot::channel();
    let network = tokio::spawn(network(listener, broker.data_addr(), delivered));

    client.admin().create_topic(NewTopic::new("t").queues(1)).await.unwrap();
    let producer = client.producer().durability(Durability::Write).build().await.unwrap();
    for body in ["first", "second"] {
        let sent = producer.send(Message::new("t", body));
        within("an acknowledgement", PATIENCE, sent).await.unwrap();
    }
    deliver.send(()).unwrap();
    within("the end of the lost connection", PATIENCE, network).await.unwrap();
    within("an acknowledgement", PATIENCE, producer.send(Message::new("t", "third")))
        .await
        .unwrap();
    let mut consumer = client.consumer().assign([TopicQueue::new("t", 0)]).build().await.unwrap();
    for body in ["first", "second", "third"] {
        let received = within("a message", PATIENCE, consumer.recv()).await.unwrap();
        assert_eq!(received.body(), body.as_bytes());
    }
    broker.shutdown().await.unwrap();
}
