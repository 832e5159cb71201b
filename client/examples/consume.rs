//! Prints what arrives, as a member of a group:
//! `cargo run -p longwire-client --example consume -- TOPIC GROUP [BROKER]`.

use longwire_client::{Client, TagFilter};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(topic), Some(group)) = (arguments.next(), arguments.next()) else {
        return Err("usage: consume TOPIC GROUP [BROKER]".into());
    };
    let broker = arguments.next().unwrap_or_else(|| "127.0.0.1:7651".into());

    let client = Client::connect(broker).await?;
    let mut consumer =
        client.consumer().group(group).subscribe(topic, TagFilter::all()).build().await?;
    loop {
        tokio::select! {
            message = consumer.recv() => {
                let message = message?;
                let body = message.body();
                println!("{}/{}: {}", message.queue(), message.offset(), body.escape_ascii());
            }
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    consumer.close().await?;
    Ok(())
}
