//! Producers that keep a broker busy and remember what became of every message.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use longwire_client::{Client, Delivery, Durability, Message, ProducerBuilder, Receipt};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::history::{History, MessageId};

/// Messages of one producer that wait for their acknowledgement.
const WINDOW: usize = 64;
/// What a producer waits before it tries again where nothing can be sent at all.
const PAUSE: Duration = Duration::from_millis(20);

/// Running producers, and the history they write.
#[derive(Debug)]
pub struct Load {
    history: Arc<Mutex<History>>,
    acked: watch::Sender<usize>,
    stop: CancellationToken,
    producers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `producers` of them to `topic`, spread over its queues by keys, acked at this
    /// `durability`. Every second one sends again what it knows no outcome of.
    ///
    /// `pace` is what each waits between two messages; zero sends as fast as acknowledgements come.
    ///
    /// # Panics
    ///
    /// If a producer cannot connect.
    pub async fn start(
        client: &Client,
        topic: &str,
        producers: u32,
        durability: Durability,
        pace: Duration,
    ) -> Load {
        Load::start_as(client, topic, 0..producers, durability, pace).await
    }

    /// As [`start`](Self::start), of producers with these numbers.
    ///
    /// # Panics
    ///
    /// If a producer cannot connect.
    pub async fn start_as(
        client: &Client,
        topic: &str,
        producers: Range<u32>,
        durability: Durability,
        pace: Duration,
    ) -> Load {
        let mut load = Load {
            history: Arc::default(),
            acked: watch::Sender::new(0),
            stop: CancellationToken::new(),
            producers: Vec::new(),
        };
        for producer in producers {
            let repeats = producer % 2 == 1;
            if repeats {
                load.history.lock().await.allow_repeats(producer);
            }
            let builder = client.producer().durability(durability).retry_unknown(repeats);
            let sending = Sending {
                history: load.history.clone(),
                acked: load.acked.clone(),
                stop: load.stop.clone(),
                topic: topic.into(),
                producer,
                pace,
            };
            load.producers.push(tokio::spawn(sending.run(builder)));
        }
        load
    }

    /// How many messages have been acknowledged so far.
    pub fn acked(&self) -> usize {
        *self.acked.borrow()
    }

    /// Waits until that many have been acknowledged in all.
    pub async fn reaches(&self, acked: usize) {
        let _ = self.acked.subscribe().wait_for(|now| *now >= acked).await;
    }

    /// Sends no more, waits for every outcome, and gives the history.
    ///
    /// # Panics
    ///
    /// If a producer has.
    pub async fn stop(self) -> History {
        self.stop.cancel();
        for producer in self.producers {
            producer.await.expect("a producer that ends well");
        }
        std::mem::take(&mut *self.history.lock().await)
    }

    /// Sends no more, waits for nothing, and gives the history. What had no answer yet is in it with
    /// neither: it may be there or not.
    pub async fn abandon(self) -> History {
        for producer in &self.producers {
            producer.abort();
        }
        for producer in self.producers {
            let _ = producer.await;
        }
        std::mem::take(&mut *self.history.lock().await)
    }
}

/// One producer.
struct Sending {
    history: Arc<Mutex<History>>,
    acked: watch::Sender<usize>,
    stop: CancellationToken,
    topic: Arc<str>,
    producer: u32,
    pace: Duration,
}

impl Sending {
    async fn run(self, builder: ProducerBuilder) {
        let producer = builder.build().await.expect("a producer");
        let mut waiting: VecDeque<(MessageId, Delivery)> = VecDeque::new();
        let mut number = 0;
        while !self.stop.is_cancelled() {
            let id = MessageId { producer: self.producer, number };
            let key = format!("{}-{}", self.producer, number % 13);
            let message = Message::new(self.topic.clone(), id.body()).key(key);
            match producer.enqueue(message).await {
                Ok(delivery) => waiting.push_back((id, delivery)),
                Err(error) => {
                    self.note(id, Err(error)).await;
                    tokio::time::sleep(PAUSE).await;
                }
            }
            number += 1;
            if waiting.len() == WINDOW
                && let Some((id, delivery)) = waiting.pop_front()
            {
                self.note(id, delivery.await).await;
            }
            if !self.pace.is_zero() {
                tokio::time::sleep(self.pace).await;
            }
        }
        for (id, delivery) in waiting {
            self.note(id, delivery.await).await;
        }
    }

    async fn note(&self, id: MessageId, outcome: Result<Receipt, longwire_client::Error>) {
        let acked = outcome.is_ok();
        self.history.lock().await.note(id, outcome);
        if acked {
            self.acked.send_modify(|acked| *acked += 1);
        }
    }
}
