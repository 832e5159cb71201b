//! Producer, consumer and admin for the Longwire message broker.
//!
//! A [`Client`] is given the address of a broker's control plane and makes the rest:
//!
//! | | |
//! |---|---|
//! | [`Producer`] | batches, bounded memory, order per queue across retries, receipts that say how safe a message is |
//! | [`Consumer`] | shares the queues of its topics with the other members of its group, or reads them all |
//! | [`Admin`] | topics, groups, committed offsets, the broker's statistics |
//!
//! All of them reconnect by themselves, and none uses the processor while there is nothing to do.
//!
//! ```no_run
//! use longwire_client::{Client, Message, TagFilter};
//!
//! # async fn example() -> Result<(), longwire_client::Error> {
//! let client = Client::connect("127.0.0.1:7651").await?;
//!
//! let producer = client.producer().build().await?;
//! let receipt = producer.send(Message::new("orders", "42 apples").key("customer-7")).await?;
//! println!("{} at offset {} of queue {}", receipt.level, receipt.offset, receipt.queue);
//!
//! let mut consumer =
//!     client.consumer().group("billing").subscribe("orders", TagFilter::all()).build().await?;
//! let message = consumer.recv().await?;
//! println!("{}", message.body().escape_ascii());
//! consumer.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What an acknowledgement means
//!
//! [`Receipt::level`] names what a message has reached: the broker's page cache, or stable storage.
//! Which of them is waited for is set per topic, per producer or per message ([`Durability`]); the
//! default is stable storage.
//!
//! # Errors
//!
//! Every call fails with an [`Error`], which tells what kind it is, the broker's stable
//! [`ErrorCode`], whether trying again can help, and whether a message may have been stored although
//! no acknowledgement came.
#![forbid(unsafe_code)]

mod admin;
mod backoff;
mod client;
mod compression;
mod connection;
mod consumer;
mod control;
mod error;
mod message;
mod producer;
mod random;

pub use admin::*;
pub use client::{Client, ClientBuilder};
pub use compression::Compression;
pub use consumer::{Consumer, ConsumerBuilder, Received, StartAt, TagFilter};
pub use error::{Error, ErrorKind, RecordRef};
pub use longwire_proto::ErrorCode;
pub use message::{AckLevel, Durability, Message, QueueOffset, Receipt, TopicQueue};
pub use producer::{Delivery, Producer, ProducerBuilder};
