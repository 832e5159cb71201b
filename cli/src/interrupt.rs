//! Ctrl-C.

use tokio_util::sync::CancellationToken;

use crate::error::Exit;

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
