//! Settings of a producer.

use std::time::Duration;

use longwire_proto::limits::REQUEST_BODY_BYTES_MAX;

use super::Producer;
use crate::Error;
use crate::client::Client;
use crate::compression::Compression;
use crate::connection::Session;
use crate::message::Durability;

/// Longer durations are taken for these, so that they can be added to any time. A timeout that is as
/// good as none leaves room for lingering as long as anyone likes.
const LINGER_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const TIMEOUT_MAX: Duration = Duration::from_secs(2 * LINGER_MAX.as_secs());

/// Settings of a [`Producer`]. Made by [`Client::producer`].
#[derive(Debug, Clone)]
pub struct ProducerBuilder {
    client: Client,
    config: Config,
}

#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) linger: Duration,
    pub(super) batch_bytes_max: usize,
    pub(super) buffer_bytes_max: usize,
    pub(super) durability: Durability,
    pub(super) compression: Compression,
    pub(super) compress_bytes_min: usize,
    pub(super) delivery_timeout: Duration,
    pub(super) retry_unknown: bool,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client) -> ProducerBuilder {
        let config = Config {
            linger: Duration::ZERO,
            batch_bytes_max: 1024 * 1024,
            buffer_bytes_max: 64 * 1024 * 1024,
            durability: Durability::Topic,
            compression: Compression::None,
            compress_bytes_min: 4096,
            delivery_timeout: Duration::from_secs(120),
            retry_unknown: true,
        };
        ProducerBuilder { client, config }
    }

    /// How long a batch that is not full waits for more messages. Default: 0, a batch goes as soon as
    /// the one before it is acknowledged, so batches grow by themselves under load. A buffer that is
    /// full does not wait for it. Must be shorter than the delivery timeout.
    pub fn linger(mut self, linger: Duration) -> ProducerBuilder {
        self.config.linger = linger;
        self
    }

    /// What a batch of one queue may grow to, in bytes. Default: 1 MiB; at most 8 MiB.
    pub fn batch_bytes_max(mut self, batch_bytes_max: usize) -> ProducerBuilder {
        self.config.batch_bytes_max = batch_bytes_max;
        self
    }

    /// How many bytes of messages are held until they are acknowledged; beyond that
    /// [`Producer::enqueue`] waits. Default: 64 MiB. Where many queues
    /// have little each, it also bounds how far their batches grow, and with that the throughput;
    /// up to three times that much memory is taken then.
    pub fn buffer_bytes_max(mut self, buffer_bytes_max: usize) -> ProducerBuilder {
        self.config.buffer_bytes_max = buffer_bytes_max;
        self
    }

    /// When messages are acknowledged that do not say so themselves. Default: as the topic is
    /// configured.
    pub fn durability(mut self, durability: Durability) -> ProducerBuilder {
        self.config.durability = durability;
        self
    }

    /// How bodies are compressed, where that makes them smaller. It is done by the task that
    /// enqueues. Default: not at all.
    pub fn compression(mut self, compression: Compression) -> ProducerBuilder {
        self.config.compression = compression;
        self
    }

    /// Bodies smaller than this, in bytes, are not compressed. Default: 4096.
    pub fn compress_bytes_min(mut self, compress_bytes_min: usize) -> ProducerBuilder {
        self.config.compress_bytes_min = compress_bytes_min;
        self
    }

    /// How long a message is tried to be delivered before it fails, and [`Producer::enqueue`] asks
    /// for the queues of a new topic. Default: 120 s.
    pub fn delivery_timeout(mut self, delivery_timeout: Duration) -> ProducerBuilder {
        self.config.delivery_timeout = delivery_timeout;
        self
    }

    /// Whether a message is sent again if the connection broke before its answer came. It may then
    /// be stored twice. Default: true.
    pub fn retry_unknown(mut self, retry_unknown: bool) -> ProducerBuilder {
        self.config.retry_unknown = retry_unknown;
        self
    }

    /// Connects to the broker's data plane. Fails with
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) for settings with which
    /// nothing would be delivered.
    pub async fn build(mut self) -> Result<Producer, Error> {
        let config = &mut self.config;
        config.batch_bytes_max = config.batch_bytes_max.clamp(1, REQUEST_BODY_BYTES_MAX);
        config.buffer_bytes_max = config.buffer_bytes_max.clamp(1, u32::MAX as usize);
        config.linger = config.linger.min(LINGER_MAX);
        config.delivery_timeout = config.delivery_timeout.min(TIMEOUT_MAX);
        let (linger, timeout) = (config.linger, config.delivery_timeout);
        if timeout.is_zero() {
            return Err(Error::invalid("a delivery timeout of 0 delivers nothing"));
        }
        if linger >= timeout {
            let message = format!(
                "messages that linger for {linger:?} would fail before they are sent: \
                 the delivery timeout is {timeout:?}, and must be longer"
            );
            return Err(Error::invalid(message));
        }
        let session = Session::new();
        let connection = self.client.open_connection(&session).await?;
        Ok(Producer::start(self.client, self.config, session, connection))
    }
}
