//! Sends every line of standard input:
//! `cargo run -p longwire-client --example produce -- TOPIC [BROKER]`.

use std::sync::Arc;

use longwire_client::{Client, Message};
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let topic: Arc<str> = arguments.next().ok_or("usage: produce TOPIC [BROKER]")?.into();
    let broker = arguments.next().unwrap_or_else(|| "127.0.0.1:7651".into());

    let client = Client::connect(broker).await?;
    let producer = client.producer().build().await?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut sent = 0;
    while let Some(line) = lines.next_line().await? {
        // Waits only for room in the buffer; `close` waits for the acknowledgements.
        producer.enqueue(Message::new(topic.clone(), line)).await?;
        sent += 1;
    }
    producer.close().await?;
    println!("{sent} messages stored");
    Ok(())
}
