//! A producer and a consumer that behave, and how long a message takes from the one to the other.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use longwire_client::{Client, Error, Message, NewTopic, TagFilter, TopicDurability};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::PATIENCE;
use crate::wait::try_within;

const PACE: Duration = Duration::from_millis(2);

/// On threads of their own, so that nothing but the broker can slow them down.
#[derive(Debug)]
pub(super) struct HealthyPair {
    runtime: Runtime,
    taken: Arc<Mutex<Vec<Duration>>>,
    task: JoinHandle<Result<(), String>>,
}

impl HealthyPair {
    pub(super) fn start(broker: String) -> Result<HealthyPair, String> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().map_err(|e| e.to_string())?;
        let taken = Arc::new(Mutex::new(Vec::new()));
        let task = runtime.spawn(trips(broker, taken.clone()));
        Ok(HealthyPair { runtime, taken, task })
    }

    /// The 99th percentile of the time from send to receive, over so long from now on.
    pub(super) fn p99_over(&self, window: Duration) -> Result<Duration, String> {
        lock(&self.taken).clear();
        std::thread::sleep(window);
        let mut taken = std::mem::take(&mut *lock(&self.taken));
        if self.task.is_finished() || taken.is_empty() {
            return Err("the healthy pair has come to a halt".to_owned());
        }
        taken.sort_unstable();
        Ok(taken[(taken.len() * 99 / 100).min(taken.len() - 1)])
    }

    /// Why it ended, where it has.
    pub(super) fn stop(self) -> Result<(), String> {
        if !self.task.is_finished() {
            self.task.abort();
            return Ok(());
        }
        self.runtime.block_on(self.task).map_err(|error| error.to_string())?
    }
}

fn lock(taken: &Mutex<Vec<Duration>>) -> std::sync::MutexGuard<'_, Vec<Duration>> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn trips(broker: String, taken: Arc<Mutex<Vec<Duration>>>) -> Result<(), String> {
    let failed = |error: Error| format!("the healthy pair: {error}");
    let client = Client::connect(broker).await.map_err(failed)?;
    let topic = NewTopic::new("healthy").queues(2).durability(TopicDurability::Write);
    client.admin().create_topic(topic).await.map_err(failed)?;
    let producer = client.producer().build().await.map_err(failed)?;
    let consumer = client.consumer().group("healthy").subscribe("healthy", TagFilter::all());
    let mut consumer = consumer.build().await.map_err(failed)?;
    for number in 0_u64.. {
        let began = Instant::now();
        let message = Message::new("healthy", number.to_string()).queue((number % 2) as u32);
        try_within("a healthy send", PATIENCE, producer.send(message)).await?.map_err(failed)?;
        let received = try_within("a healthy receive", PATIENCE, consumer.recv()).await?;
        if received.map_err(failed)?.body() != number.to_string() {
            return Err(format!("the healthy pair got another message than {number}"));
        }
        lock(&taken).push(began.elapsed());
        tokio::time::sleep(PACE).await;
    }
    Ok(())
}
