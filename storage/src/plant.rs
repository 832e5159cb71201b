//! Bugs that can be planted, one at a time, to see that the suites catch them.
//!
//! Without the feature `testing` none ever is.

#[cfg(feature = "testing")]
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// A bug that a storage engine could have.
#[cfg_attr(not(feature = "testing"), expect(unreachable_pub, reason = "public with the feature"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Plant {
    /// Records count as durable before the sync.
    AckBeforeSync = 1,
    /// Names of new files are not made durable.
    NoDirectorySync,
    /// A failed sync is tried again, as if the kernel still had the pages.
    SyncRetried,
    /// Any bad record cuts the log, acknowledged or not.
    TruncateAtAnyDamage,
    /// The views' position on disk is ahead of what is in them.
    ViewAhead,
}

#[cfg(feature = "testing")]
impl Plant {
    /// All of them, by the name a command line gives.
    pub const ALL: [(&str, Plant); 5] = [
        ("ack-before-sync", Plant::AckBeforeSync),
        ("no-directory-sync", Plant::NoDirectorySync),
        ("sync-retried", Plant::SyncRetried),
        ("truncate-at-any-damage", Plant::TruncateAtAnyDamage),
        ("view-ahead", Plant::ViewAhead),
    ];
}

#[cfg(feature = "testing")]
static PLANTED: AtomicU8 = AtomicU8::new(0);

/// Plants a bug in every store of this process, or none.
#[cfg(feature = "testing")]
pub fn plant(bug: Option<Plant>) {
    PLANTED.store(bug.map_or(0, |bug| bug as u8), Relaxed);
}

/// Whether this bug has been planted.
#[cfg(feature = "testing")]
pub(crate) fn planted(bug: Plant) -> bool {
    PLANTED.load(Relaxed) == bug as u8
}

/// Whether this bug has been planted: never, in a broker that is not under test.
#[cfg(not(feature = "testing"))]
pub(crate) const fn planted(_: Plant) -> bool {
    false
}
