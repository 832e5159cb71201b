//! The primitives of what is checked under every interleaving of its threads: `tests/loom` compiles
//! the same files with loom's in their place.

pub(crate) use std::sync::atomic::AtomicU64;
pub(crate) use std::thread;

pub(crate) use parking_lot::{Condvar, Mutex};
