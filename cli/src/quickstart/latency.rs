//! How long a single message takes, from the call that sends it to its arrival.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use longwire_client::{Client, Message, NewTopic, TagFilter, TopicDurability, TopicQueue};

use crate::error::Failure;

const TOPIC: &str = "quickstart-latency";
/// Not counted: connections, caches and threads are still waking up.
const WARM_UP: u32 = 100;
const MESSAGES_MAX: u32 = 2_000;
const TIME_MAX: Duration = Duration::from_secs(4);
/// Longer times count as this.
const TIME_MAX_NS: u64 = 60_000_000_000;
const BODY: &[u8] = &[b'x'; 100];

/// Percentiles over single messages.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Latency {
    pub(super) messages: u64,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    pub(super) p999: Duration,
}

/// Sends messages one at a time, each when the one before has arrived, and times each.
///
/// Sender and receiver are one process, so that one clock times both ends.
pub(super) async fn measure(
    client: &Client,
    durability: TopicDurability,
) -> Result<Latency, Failure> {
    let topic = NewTopic::new(TOPIC).queues(1).durability(durability);
    client.admin().create_topic(topic).await?;
    let producer = client.producer().build().await?;
    let mut consumer = client
        .consumer()
        .subscribe(TOPIC, TagFilter::all())
        .assign([TopicQueue::new(TOPIC, 0)])
        .auto_commit(None)
        .build()
        .await?;
    // Three digits are what the clock and the machine are good for.
    let mut times = Histogram::<u64>::new_with_bounds(1, TIME_MAX_NS, 3)
        .map_err(|error| Failure::failed(format!("cannot measure single messages: {error}")))?;
    let started = Instant::now();
    for number in 0..WARM_UP + MESSAGES_MAX {
        let message = Message::new(TOPIC, BODY);
        let sent_at = Instant::now();
        let arrival = async {
            let message = consumer.recv().await?;
            Ok((message, sent_at.elapsed()))
        };
        let (_, (_, time)) = tokio::try_join!(producer.send(message), arrival)?;
        if number >= WARM_UP {
            times.saturating_record(time.as_nanos().try_into().unwrap_or(u64::MAX));
        }
        if started.elapsed() > TIME_MAX && !times.is_empty() {
            break;
        }
    }
    producer.close().await?;
    consumer.close().await?;
    let at = |quantile| Duration::from_nanos(times.value_at_quantile(quantile));
    Ok(Latency { messages: times.len(), p50: at(0.5), p99: at(0.99), p999: at(0.999) })
}
