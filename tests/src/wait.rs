//! Waiting for what must come to pass.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const PACE: Duration = Duration::from_millis(10);

/// Waits until `done` gives something; how long that took, and what it gave.
///
/// # Panics
///
/// With `what`, if it does not within `limit`.
pub fn until<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> (Duration, T) {
    let began = Instant::now();
    loop {
        if let Some(found) = done() {
            return (began.elapsed(), found);
        }
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(PACE);
    }
}

/// As [`until`], without holding up the runtime.
///
/// # Panics
///
/// With `what`, if it does not within `limit`.
pub async fn until_async<T, F: Future<Output = Option<T>>>(
    what: &str,
    limit: Duration,
    mut done: impl FnMut() -> F,
) -> (Duration, T) {
    let began = Instant::now();
    loop {
        if let Some(found) = done().await {
            return (began.elapsed(), found);
        }
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(PACE).await;
    }
}

/// What `future` gives.
///
/// # Panics
///
/// With `what`, if it does not end within `limit`.
pub async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> T {
    match try_within(what, limit, future).await {
        Ok(done) => done,
        Err(problem) => panic!("{problem}"),
    }
}

/// What `future` gives; fails, with `what`, if it does not end within `limit`.
pub async fn try_within<T>(
    what: &str,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Result<T, String> {
    let done = tokio::time::timeout(limit, future).await;
    done.map_err(|_| format!("not within {limit:?}: {what}"))
}
