//! A broker as a client of its control plane, HTTP port and command line sees it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod binary;
mod groups;
mod http;
mod offsets;
mod scene;
mod topics;
