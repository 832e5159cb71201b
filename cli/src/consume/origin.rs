//! Tells a topic from another that has its name later.

use std::time::Duration;

use longwire_client::{Admin, Error, ErrorCode, Topic};
use tokio::time::Instant;

use super::cannot_read;
use crate::error::{Exit, Failure};

/// The topic that is read, as it was when reading began.
///
/// A fetch names a topic and an offset, and so finds what is there now: a reader that has held back
/// its fetches for a while would go on in the middle of a topic that was made meanwhile.
#[derive(Debug)]
pub(super) struct Origin {
    admin: Admin,
    topic: Topic,
    /// What lies before this position of the log under the topic's name is of this topic.
    known_to: u64,
    /// How often what arrives has the broker asked, at most.
    interval: Duration,
    asked: Option<Instant>,
}

impl Origin {
    /// `topic` as the broker described it after it had written up to `known_to`.
    pub(super) fn new(admin: Admin, topic: Topic, known_to: u64, interval: Duration) -> Origin {
        Origin { admin, topic, known_to, interval, asked: None }
    }

    /// Fails if what has arrived, up to this position, may be of a topic that was made anew.
    pub(super) async fn check(&mut self, position: u64) -> Result<(), Failure> {
        let is_too_soon = self.asked.is_some_and(|at| at.elapsed() < self.interval);
        if position < self.known_to || is_too_soon {
            return Ok(());
        }
        let Ok(statistics) = self.admin.statistics().await else {
            return Ok(());
        };
        self.ask().await?;
        self.known_to = statistics.written_position;
        self.asked = Some(Instant::now());
        Ok(())
    }

    /// Why nothing more of it can be read.
    pub(super) fn cannot_read(&self, error: Error) -> Failure {
        let topic = &self.topic.name;
        if error.code() == Some(ErrorCode::UnknownTopic) {
            let message = format!("there is no topic {topic:?} any more; it has been deleted");
            return Failure::new(Exit::NotFound, message);
        }
        cannot_read(error, |queue, next| {
            format!("'longwire consume {topic} --queue {queue} --from {next}' goes on behind it")
        })
    }

    /// Fails if the topic of this name is another one now.
    pub(super) async fn ask(&self) -> Result<(), Failure> {
        match self.admin.describe_topic(&self.topic.name).await {
            Ok(now) if now.topic.created_ms != self.topic.created_ms => {
                let message = format!(
                    "topic {:?} was deleted and made again while it was read; what comes now is of \
                     the new one",
                    self.topic.name
                );
                Err(Failure::failed(message))
            }
            // A broker or a topic that is not there shows where it is read as well.
            _ => Ok(()),
        }
    }
}
