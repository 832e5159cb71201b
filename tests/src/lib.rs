//! What Longwire's end-to-end suites share.
//!
//! [`segment_reader`] and [`segment_writer`] know RocketMQ's segment files from the format alone, so
//! that the suites can hold the broker's files against something that is not the broker's code.
//! [`broker_process`] runs the real binary, [`history`] holds what was acknowledged against what is
//! there, [`frame_client`] speaks the data plane frame by frame.

pub mod bare_write;
pub mod binary;
pub mod broker_process;
pub mod embedded;
pub mod frame_client;
pub mod fuzz_seeds;
pub mod golden;
pub mod history;
pub mod load;
pub mod many_queues;
pub mod member_process;
pub mod page;
pub mod page_cache;
pub mod planted_broker;
pub mod power;
pub mod process_figures;
pub mod segment_reader;
pub mod segment_writer;
pub mod small_disk;
pub mod strace;
pub mod torture;
pub mod vanish;
pub mod wait;

use std::fmt::Display;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;

/// A number that differs from one call to the next.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Says that something is not tested here, and why. A test that passes shows this, too, as it is not
/// printed by a macro: what those print is captured.
pub fn skip(reason: impl Display) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a thread");
    // Nothing can be done where not even that can be said.
    let _ = writeln!(std::io::stderr(), "skipped in {test}: {reason}");
}

/// Bytes that differ from one seed to the next and do not repeat soon.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}
