//! Ctrl-C.

use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::error::{Exit, Failure};

/// What is on its way when a command is interrupted may take so long to be acknowledged.
const GRACE: Duration = Duration::from_secs(2);

/// A signal so soon after the first is the same again: `timeout` and others send it to the process and
/// to its group.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// A token that is cancelled by the first Ctrl-C or SIGTERM, so that the command can end in good
/// order. A second one, half a second or more later, ends the process where it stands.
///
/// From here on neither ends the process by itself: whatever may wait has to watch the token.
pub(crate) fn token() -> CancellationToken {
    let token = CancellationToken::new();
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
        return token;
    };
    let cancel = token.clone();
    let mut signalled = async move || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    tokio::spawn(async move {
        signalled().await;
        cancel.cancel();
        let began = Instant::now();
        while began.elapsed() < SAME_SIGNAL {
            signalled().await;
        }
        std::process::exit(Exit::Interrupted as i32);
    });
    token
}

/// What `work` comes to, unless the command is interrupted before.
pub(crate) async fn race<T>(
    interrupted: &CancellationToken,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = interrupted.cancelled() => Err(Failure::interrupted()),
        outcome = work => outcome,
    }
}

/// Completes once what was on its way at the interruption has had its time.
pub(crate) async fn given_up(interrupted: &CancellationToken) {
    interrupted.cancelled().await;
    tokio::time::sleep(GRACE).await;
}
