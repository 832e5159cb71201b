//! The `longwire` command as a user runs it, against a broker in this process.
#![allow(clippy::unwrap_used)]

mod bench;
mod broker;
mod commands;
mod groups;
mod quickstart;
mod round_trip;
