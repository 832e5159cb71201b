//! The Longwire broker, as a library and as the binary `longwire-broker`.
//!
//! A broker serves three ports: the data plane (produce and fetch, over TCP), the control plane
//! (topics, groups, offsets, over gRPC) and HTTP (health and metrics). Programs use it through
//! `longwire-client`; this crate is for running one, in production or inside a test:
//!
//! ```
//! use longwire_broker::{Broker, Config};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
//! # runtime.block_on(async {
//! let folder = tempfile::tempdir()?;
//! let broker = Broker::start(Config::ephemeral(folder.path())).await?;
//! println!("give {} to a client", broker.control_addr());
//! broker.shutdown().await?;
//! # Ok(()) })
//! # }
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | `data` | the data plane: connections, produce, fetch, parked fetches |
//! | `transfer` | a read plan to a socket, by the best path for each range |
//! | `control` | the gRPC services |
//! | `groups` | who is a member, and who reads which queue |
//! | `http` | health and metrics |
//! | `gate`, `descriptors` | who gets in to control plane and HTTP, and how many connections there can be |
//! | `refusals` | what is counted and said of those that do not get in |
//! | [`config`] | what a broker can be told, and where |
//! | `broker`, `state` | starting, stopping, and what the parts share |

pub mod config;

mod broker;
mod control;
mod data;
mod descriptors;
mod gate;
mod groups;
mod http;
mod metrics;
mod refusals;
mod state;
mod transfer;

pub use broker::{Broker, StartError};
pub use config::Config;
