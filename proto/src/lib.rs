//! The bytes Longwire speaks and stores, and nothing that does I/O.
//!
//! | module | what it holds |
//! |---|---|
//! | [`record`] | the RocketMQ record: encode, borrowing view, seal, checksums |
//! | [`frame`] | the data plane's length-prefixed frames |
//! | [`data`] | the protobuf headers inside those frames |
//! | [`store`] | the protobuf bodies of Longwire's own system-topic records |
//! | [`limits`] | every maximum, in one place |
//! | [`name`] | what a topic or group may be called |
//! | [`error_code`] | stable error numbers shared by data and control plane |
//! | `control` | gRPC stubs of the control plane (feature `grpc`) |
//!
//! Nothing here allocates from a length that has not been checked against [`limits`].
//!
//! ```
//! use longwire_proto::record::{self, Placement, RecordDraft, RecordView};
//!
//! let mut bytes = Vec::new();
//! let draft = RecordDraft { topic: "orders", body: b"hello", tag: "paid", ..RecordDraft::default() };
//! draft.encode(&mut bytes)?;
//!
//! // The broker fills in the fields that are its own.
//! record::seal(&mut bytes, &Placement {
//!     offset: 7,
//!     position: 4096,
//!     store_timestamp_ms: 1_700_000_000_000,
//!     store_host: "127.0.0.1:7650".parse()?,
//! });
//!
//! let view = RecordView::parse(&bytes)?;
//! view.verify_checksum()?;
//! assert_eq!((view.topic(), view.offset(), view.body()), ("orders", 7, &b"hello"[..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod error_code;
pub mod frame;
pub mod limits;
pub mod name;
pub mod record;

pub use error_code::ErrorCode;

/// Headers of data-plane frames (`proto/longwire/data/v1/data.proto`).
#[allow(missing_docs, clippy::all)]
pub mod data {
    include!(concat!(env!("OUT_DIR"), "/longwire.data.v1.rs"));
}

/// Bodies of system-topic records (`proto/longwire/store/v1/store.proto`).
#[allow(missing_docs, clippy::all)]
pub mod store {
    include!(concat!(env!("OUT_DIR"), "/longwire.store.v1.rs"));
}

/// gRPC stubs of the control plane (`proto/longwire/v1/*.proto`).
#[cfg(feature = "grpc")]
#[allow(missing_docs, missing_debug_implementations, clippy::all)]
pub mod control {
    include!(concat!(env!("OUT_DIR"), "/longwire.v1.rs"));

    /// The encoded file descriptors of the control plane, for gRPC server reflection.
    pub const DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/control_descriptors.bin"));
}

#[cfg(feature = "grpc")]
mod status;
#[cfg(feature = "grpc")]
pub use status::{error_code_of, status};
