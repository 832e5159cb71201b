//! Ctrl-C.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::error::Exit;

/// What is on its way when a command is interrupted may take so long to be acknowledged.
const GRACE: Duration = Duration::from_secs(2);

/// A token that is cancelled by the first Ctrl-C or SIGTERM, so that the command can end in good
/// order. The second one ends the process where it stands.
pub(crate) fn token() -> CancellationToken {
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        if signalled().await.is_err() {
            return;
        }
        cancel.cancel();
        if signalled().await.is_ok() {
            std::process::exit(Exit::Interrupted as i32);
        }
    });
    token
}

/// Completes once what was on its way at the interruption has had its time.
pub(crate) async fn given_up(interrupted: &CancellationToken) {
    interrupted.cancelled().await;
    tokio::time::sleep(GRACE).await;
}

#[cfg(unix)]
async fn signalled() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        outcome = tokio::signal::ctrl_c() => outcome,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(not(unix))]
async fn signalled() -> std::io::Result<()> {
    tokio::signal::ctrl_c().await
}
