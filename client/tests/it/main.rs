//! The client against a scripted broker in this process.
#![allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::unwrap_used)]

mod connecting;
mod consumer;
mod ending;
mod member;
mod mock;
mod producer;
