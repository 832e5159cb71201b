//! How many connections the process has file descriptors for.

use std::io;

use longwire_storage::QUEUE_FILES_OPEN_MAX;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::broker::StartError;
use crate::config::{Config, TransferMode};
use crate::http;
use crate::transfer;

/// Consume-queue files the store keeps open at most, what reading history takes, and for whatever else
/// comes and goes: the next segment, a checkpoint, a folder that is synced, a connection that is
/// accepted to be refused.
const STORE_FILES: u64 = (QUEUE_FILES_OPEN_MAX + transfer::HISTORY_FILES_MAX) as u64 + 64;
/// A part of all is kept for segments, of which there will be more.
const SEGMENTS_PART: u64 = 8;
/// Below this many connections of each plane a broker is of no use.
const CONNECTIONS_MIN: usize = 16;

/// Refuses to start where there are too few descriptors for a broker to be of use.
pub(crate) fn check(config: &Config) -> Result<(), StartError> {
    room(config).map(drop)
}

/// Lowers `limits.connections_max` to what the process has file descriptors for, and says so.
///
/// Descriptors that run out do so for the store too, which then can neither go on to the next segment
/// nor make a topic. Call it when the store is open: its segments are counted as they are.
pub(crate) fn limit_connections(config: &mut Config) -> Result<(), StartError> {
    let connections_max = config.limits.connections_max;
    if let Some((limit, room)) = room(config)?
        && room < connections_max
    {
        tracing::warn!(
            limit,
            connections_max,
            "the limit of open files is too low for limits.connections_max: data plane and control \
             plane take {room} connections each; raise it (ulimit -n, LimitNOFILE= of systemd)"
        );
        config.limits.connections_max = room;
    }
    Ok(())
}

/// The limit of the process, and how many connections that is for each plane; `None` without a limit.
fn room(config: &Config) -> Result<Option<(u64, usize)>, StartError> {
    let Some(limit) = raise_limit() else {
        return Ok(None);
    };
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    // A pipe of its own is two more.
    let each = if config.transfer.mode == TransferMode::Splice { 3 } else { 1 };
    let room = usize::try_from(connections(limit, open, each)).unwrap_or(usize::MAX);
    if room < CONNECTIONS_MIN.min(config.limits.connections_max) {
        return Err(StartError::FewDescriptors { limit, open });
    }
    Ok(Some((limit, room)))
}

/// How many connections each of the two planes can have under a limit, where so many descriptors are
/// open already and a data connection takes `each`.
fn connections(limit: u64, open: u64, each: u64) -> u64 {
    let kept = open + STORE_FILES + http::CONNECTIONS_MAX as u64 + limit / SEGMENTS_PART;
    limit.saturating_sub(kept) / (each + 1)
}

/// Raises the limit as far as that is allowed, as the one a shell gives is a small one; `None` where
/// there is none.
fn raise_limit() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    let before = std::mem::replace(&mut limit.current, limit.maximum);
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::debug!(%error, "the limit of file descriptors stays as it is");
            before
        }
    }
}

/// Whether accepting a connection failed for want of something, which trying again at once cannot change.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| shortages.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_share_what_the_store_leaves_of_the_limit() {
        assert_eq!(connections(1024, 40, 1), (1024 - 40 - 432 - 128 - 128) / 2);
        assert_eq!(connections(1024, 40, 3), (1024 - 40 - 432 - 128 - 128) / 4);
        assert_eq!(connections(512, 40, 1), 0);
        assert!(connections(65_536, 1000, 1) > 10_000);
        for (limit, open) in [(600, 40), (4096, 500), (20_000, 100), (1 << 20, 5000)] {
            let both = 2 * connections(limit, open, 1);
            assert!(open + both + STORE_FILES + http::CONNECTIONS_MAX as u64 <= limit);
        }
    }
}
