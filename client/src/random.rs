//! Randomness without a dependency.

use std::hash::{BuildHasher, Hasher, RandomState};

/// What a new `RandomState`, which has keys of its own, hashes nothing to.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
