//! The files of a Longwire broker: one commit log, and everything that is derived from it.
//!
//! No sockets, no async runtime: threads, locks and files. The broker appends [`RecordRun`]s to a
//! [`Queue`] and turns fetches into [`ReadPlan`]s, which hold ranges of segments and no bytes.
//!
//! ```text
//!  append ──► commit log ──► flusher      durable position, acknowledgements
//!                       └──► dispatcher   consume queues, map views, wake-ups
//!  plan_read ──► consume queue ──► ranges of segments ──► (the broker's transfer)
//! ```
//!
//! What a caller can rely on:
//!
//! - Everything below [`Store::durable`] survives power loss; a consumer of a topic with
//!   [`Durability::Flush`] never sees anything above it.
//! - A record never changes once it is visible, and a segment is never truncated while it is open, so
//!   its pages can be handed to the kernel (`sendfile`) without a copy.
//! - After a failed write or sync nothing is acknowledged any more ([`Store::failed`]).
//! - Everything but the log can be deleted; the next start rebuilds it.
//!
//! ```
//! use longwire_proto::record::RecordDraft;
//! use longwire_storage::{IndexRead, RecordRun, Store, StoreConfig, TagFilter, TopicConfig};
//!
//! let dir = tempfile::tempdir()?;
//! let config = StoreConfig { segment_bytes: 1 << 20, ..StoreConfig::new(dir.path()) };
//! let store = Store::open(config)?;
//! let topic = store.create_topic(TopicConfig::new("orders", 1))?;
//! let queue = topic.queue(0).unwrap();
//!
//! let mut bytes = Vec::new();
//! RecordDraft { topic: "orders", body: b"hello", ..Default::default() }.encode(&mut bytes)?;
//! let extents = store.append(&queue, &mut RecordRun::check("orders", 0, &mut bytes)?)?;
//!
//! let end = extents[0].end;
//! store.flushed_blocking(end)?;
//! let plan = store.plan_read(&queue, 0, 1 << 20, &TagFilter::All, IndexRead::MayBlock)?;
//! assert_eq!((plan.records, plan.next_offset, plan.bytes), (1, 1, bytes.len() as u64));
//! store.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod appender;
mod arrivals;
mod call;
mod checkpoint;
mod commit_log;
mod config;
mod consume_queue;
pub mod disk;
mod dispatcher;
mod error;
mod flusher;
mod housekeeper;
mod marks;
mod open;
mod plant;
mod queue;
mod queue_files;
mod queue_sums;
mod read_plan;
mod recent;
mod recovery;
mod reserve;
mod retention;
mod run;
mod salvage;
mod scan;
mod segment;
mod segment_supply;
mod store;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
mod topics;
mod unflushed;
mod verify;
mod views;
mod watermark;
mod zeros;

pub use appender::{Appended, Extent, Extents, QueueRun};
pub use arrivals::{Arrival, Arrivals, Wanted, block_of};
pub use config::{AppendPath, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, StoreConfig};
pub use consume_queue::IndexRead;
pub use error::{
    AppendError, CloseError, FileError, GroupError, OpenError, ReadError, RunError, SalvageError,
    TopicError,
};
#[cfg(feature = "testing")]
pub use plant::{Plant, plant};
pub use queue::{Durability, Queue, Topic, TopicConfig, TopicUpdate};
pub use queue_files::QUEUE_FILES_OPEN_MAX;
pub use read_plan::{Range, Ranges, ReadPlan, TagFilter};
pub use run::RecordRun;
pub use salvage::{salvage, salvage_on};
pub use store::{Store, StoreStats};
pub use verify::{Damage, Gap, LostMessage, Verified, verify, verify_on};
pub use views::CommittedOffset;
pub use watermark::{Reached, Watermark, WatermarkClosed};
