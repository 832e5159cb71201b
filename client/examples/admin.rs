//! Creates a topic if need be and shows all of them:
//! `cargo run -p longwire-client --example admin -- TOPIC [BROKER]`.

use longwire_client::{Client, ErrorCode, NewTopic, TopicDurability};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let topic = arguments.next().ok_or("usage: admin TOPIC [BROKER]")?;
    let broker = arguments.next().unwrap_or_else(|| "127.0.0.1:7651".into());

    let admin = Client::connect(broker).await?.admin();
    let topic = NewTopic::new(topic).queues(8).durability(TopicDurability::Flush);
    match admin.create_topic(topic).await {
        Err(error) if error.code() == Some(ErrorCode::TopicExists) => println!("{error}"),
        created => println!("created {:?}", created?.name),
    }
    for topic in admin.list_topics(false).await? {
        let description = admin.describe_topic(&topic.name).await?;
        let messages = description.queues.iter().map(|q| q.max_offset - q.min_offset);
        println!("{}: {} queues, {} messages", topic.name, topic.queues, messages.sum::<u64>());
    }
    Ok(())
}
