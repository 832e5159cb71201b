//! Moves the ranges of a read plan to a socket, by the cheapest way for each.
//!
//! ```text
//!  range of the plan      resident?             path, in mode `adaptive`
//!  ─────────────────      ─────────────────     ────────────────────────────────────────────
//!  from 32 KiB            yes, or tail   ──►    sendfile: the process never sees the bytes
//!  4 KiB up to that       yes, or tail   ──►    mapped slice  ┐ consecutive ones together in
//!  under 4 KiB            yes, or tail   ──►    copied slice  ┘ one sendmsg
//!  from 256 KiB           no             ──►    direct: from the disk past the page cache
//!  any other              no             ──►    read in on the I/O pool first, then as above
//! ```
//!
//! The frame's head goes out with the first bytes: in the same `sendmsg`, or held back by
//! `MSG_MORE` until `sendfile` adds them. Never does an empty body follow `MSG_MORE`: the kernel
//! would wait 200 ms for it.

mod buffered;
mod cold;
mod gather;
mod history;
mod load;
mod rest;
mod sendfile;
mod socket;
mod splice;

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Poll;

use longwire_storage::Range;

use crate::config::TransferMode;
use crate::metrics::{FallbackReason, Metrics, TransferPath};

pub(crate) use cold::IoPool;
pub(crate) use history::FILES_MAX as HISTORY_FILES_MAX;
pub(crate) use socket::{Socket, send_slices};

use buffered::Buffer;
use cold::Warmth;
use history::History;
use load::ReadAhead;
use rest::{Piece, Rest};
use splice::SplicePipe;

/// From this length on a range goes by `sendfile`. Below, finding the pages one by one costs what
/// the copy would: over loopback, sending 32 KiB takes 7.0 us by `sendfile` and 6.9 from the mapping,
/// 64 KiB 10.8 and 12, 256 KiB 27 and 36; a fetch of 32 KiB in all takes a broker 24.2 and 26.2 us.
const SENDFILE_BYTES_MIN: usize = 32 << 10;

/// Below this length a range is copied together with its neighbours: 32 scattered records of 1 KiB
/// take 11 us so and 18 as slices of their own; at 4 KiB the difference is gone.
const SLICE_BYTES_MIN: usize = 4 << 10;

/// Most bytes of one call, and what a connection sends before it lets the others of its thread go
/// first: an uncapped `sendfile` to a consumer that keeps up held its thread for 13 to 88 ms, and calls
/// without a pause, to a socket that always took them, kept a fetch at the tail waiting for 0.8 ms.
const CALL_BYTES_MAX: usize = 512 << 10;

/// The same for one `sendfile`, which takes half as long as a copy. Each pause lets the consumer fall
/// asleep, and to wake it costs more than the pause: with two calls for each MiB streaming took 7 % more.
const SENDFILE_BYTES_MAX: usize = 1 << 20;

/// The same for a connection that reads history, whose fetches are not urgent, and take longer to send.
const HISTORY_CALL_BYTES_MAX: usize = 64 << 10;

/// What a connection keeps from one frame to the next; whoever has the turn to write uses it.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pipe: SplicePipe,
    ahead: ReadAhead,
    history: History,
    /// What has been sent since the others of the thread could last go first.
    sent: AtomicUsize,
}

impl Kept {
    fn call_bytes_max(&self, path: TransferPath) -> usize {
        match path {
            _ if self.ahead.is_active() || self.history.is_active() => HISTORY_CALL_BYTES_MAX,
            TransferPath::Sendfile => SENDFILE_BYTES_MAX,
            _ => CALL_BYTES_MAX,
        }
    }

    /// Lets others go first, where the connection has sent enough.
    pub(crate) async fn pause(&self) {
        if self.sent.load(Relaxed) >= self.call_bytes_max(TransferPath::Buffered) {
            self.sent.store(0, Relaxed);
            tokio::task::yield_now().await;
            // The runtime has looked who else is ready by now, and goes on with who has yielded.
            go_last().await;
        }
    }
}

/// Goes on when all tasks that are ready have had their turn.
fn go_last() -> impl Future<Output = ()> {
    let mut is_last = false;
    std::future::poll_fn(move |context| {
        if std::mem::replace(&mut is_last, true) {
            return Poll::Ready(());
        }
        // Who wakes itself while it runs goes to the end of the queue.
        context.waker().wake_by_ref();
        Poll::Pending
    })
}

/// Sends frames to one socket.
#[derive(Debug)]
pub(crate) struct Transfer<'a> {
    socket: Socket<'a>,
    mode: TransferMode,
    kept: &'a Kept,
    pool: &'a IoPool,
    metrics: &'a Metrics,
}

/// What the next call sends, and how.
#[derive(Debug, Clone, Copy)]
struct Step {
    path: TransferPath,
    bytes: usize,
    pieces: usize,
}

impl<'a> Transfer<'a> {
    pub(crate) fn new(
        socket: Socket<'a>,
        mode: TransferMode,
        kept: &'a Kept,
        pool: &'a IoPool,
        metrics: &'a Metrics,
    ) -> Transfer<'a> {
        Transfer { socket, mode, kept, pool, metrics }
    }

    /// Sends the head of a frame and all bytes of the ranges.
    ///
    /// When this fails or is dropped half way, the connection is of no use any more.
    pub(crate) async fn send(&self, head: &[u8], ranges: &[Range]) -> io::Result<()> {
        let mut rest = Rest::new(head, ranges);
        let mut warmth = Warmth::default();
        let mut buffer = Buffer::default();
        let mut refused = false;
        let ahead = &self.kept.ahead;
        while !rest.is_empty() {
            self.kept.pause().await;
            let mut step = self.next_step(&rest);
            if refused && step.path.is_by_reference() {
                step.path = TransferPath::Buffered;
                step.bytes = step.bytes.min(CALL_BYTES_MAX);
            }
            if self.send_history(&mut rest, step, &mut warmth).await? {
                continue;
            }
            warmth.warm(&rest, step.bytes, ahead, self.pool, self.metrics).await?;
            let sent = match step.path {
                TransferPath::Mmap => self.gather(&rest, step).await,
                TransferPath::Buffered => {
                    let pieces = rest.pieces(0, step.bytes);
                    buffer.send(&self.socket, &rest, pieces).await
                }
                path => match self.send_pages(&mut rest, step, path).await {
                    Err(error) if sendfile::is_refusal(&error) => {
                        self.metrics.fell_back(FallbackReason::Unsupported);
                        refused = true;
                        continue;
                    }
                    sent => sent,
                },
            }?;
            self.advance(&mut rest, &mut warmth, sent, step.path).await;
        }
        ahead.follow(ranges, warmth.was_cold, self.pool);
        Ok(())
    }

    /// Takes note of what has been sent.
    async fn advance(
        &self,
        rest: &mut Rest<'_>,
        warmth: &mut Warmth,
        sent: usize,
        path: TransferPath,
    ) {
        let mut body = 0;
        rest.advance(sent, |bytes| body += bytes);
        self.metrics.sent(path, body as u64);
        warmth.advance(body);
        self.kept.sent.fetch_add(body, Relaxed);
        tokio::task::consume_budget().await;
    }

    /// The decision: one path for as many of the next ranges as it suits.
    fn next_step(&self, rest: &Rest<'_>) -> Step {
        let path = |range: &Range| match self.mode {
            TransferMode::Sendfile => TransferPath::Sendfile,
            TransferMode::Mmap => TransferPath::Mmap,
            TransferMode::Buffered => TransferPath::Buffered,
            TransferMode::Splice => TransferPath::Splice,
            TransferMode::Adaptive if range.len() < SENDFILE_BYTES_MIN => TransferPath::Mmap,
            TransferMode::Adaptive => TransferPath::Sendfile,
        };
        let mut step = Step { path: TransferPath::Mmap, bytes: 0, pieces: 0 };
        let Some(first) = rest.pieces(0, usize::MAX).next() else {
            return step;
        };
        step.path = path(first.range);
        let pieces_max = if step.path.is_by_reference() { 1 } else { gather::SLICES_MAX };
        let pieces = rest.pieces(0, self.kept.call_bytes_max(step.path)).take(pieces_max);
        for piece in pieces.take_while(|piece| path(piece.range) == step.path) {
            step.bytes += piece.len;
            step.pieces += 1;
        }
        step
    }

    async fn gather(&self, rest: &Rest<'_>, step: Step) -> io::Result<usize> {
        let copy_below = match self.mode {
            TransferMode::Adaptive => SLICE_BYTES_MIN,
            _ => 0,
        };
        if step.pieces > 0 {
            self.metrics.fell_back(match self.mode {
                TransferMode::Adaptive if step.pieces > 1 => FallbackReason::Scattered,
                TransferMode::Adaptive => FallbackReason::Short,
                _ => FallbackReason::Configured,
            });
        }
        let more = rest.body() > step.bytes;
        self.socket
            .write(|stream| {
                gather::send(stream, rest.head, rest.pieces(0, step.bytes), copy_below, more)
            })
            .await
    }

    /// Sends bytes of a long range past the page cache, if they are not in it; `false` if nothing was
    /// sent that way.
    async fn send_history(
        &self,
        rest: &mut Rest<'_>,
        step: Step,
        warmth: &mut Warmth,
    ) -> io::Result<bool> {
        let (history, pool) = (&self.kept.history, self.pool);
        if self.mode != TransferMode::Adaptive || step.path != TransferPath::Sendfile {
            return Ok(false);
        }
        // A call that may be long, as the threads that serve sockets do not make it.
        let Some(piece) = rest.pieces(0, SENDFILE_BYTES_MAX).next() else {
            return Ok(false);
        };
        let mut sent = None;
        if history.is_active() {
            sent = self.send_from_stream(rest, &piece).await?;
        }
        // The stream may have ended, with the segment or elsewhere, and another one go on.
        if sent.is_none()
            && History::suits(&piece, pool)
            && !warmth.is_warm(rest, step.bytes, &self.kept.ahead, pool)
            && history.begin(&piece, &self.socket, pool)
        {
            sent = self.send_from_stream(rest, &piece).await?;
        }
        let Some(sent) = sent else {
            return Ok(false);
        };
        self.advance(rest, warmth, sent.bytes, TransferPath::Direct).await;
        if sent.is_full {
            self.socket.wait_for_room().await?;
        }
        Ok(true)
    }

    async fn send_from_stream(
        &self,
        rest: &mut Rest<'_>,
        piece: &Piece<'_>,
    ) -> io::Result<Option<history::Sent>> {
        self.send_head(rest).await?;
        self.kept.history.send(piece, rest.body(), self.pool, self.metrics).await
    }

    /// Sends the head, and then bytes of the first range without looking at them.
    async fn send_pages(
        &self,
        rest: &mut Rest<'_>,
        step: Step,
        path: TransferPath,
    ) -> io::Result<usize> {
        self.send_head(rest).await?;
        let Some(piece) = rest.pieces(0, step.bytes).next() else {
            return Ok(0);
        };
        if path == TransferPath::Splice {
            let more = rest.body() > piece.len;
            return self.kept.pipe.send(&self.socket, &piece, more).await;
        }
        self.socket.write(|stream| sendfile::send(stream, &piece)).await
    }

    /// Sends what is left of the head; bytes of a range must follow.
    async fn send_head(&self, rest: &mut Rest<'_>) -> io::Result<()> {
        while !rest.head.is_empty() {
            let head = [IoSlice::new(rest.head)];
            let sent = self.socket.write(|stream| send_slices(stream, &head, true)).await?;
            rest.head = &rest.head[sent..];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[test]
    fn who_has_sent_enough_lets_others_go_first_once() {
        let kept = Kept::default();
        let is_ready = || {
            let pause = pin!(kept.pause());
            pause.poll(&mut Context::from_waker(Waker::noop())).is_ready()
        };
        kept.sent.fetch_add(CALL_BYTES_MAX - 1, Relaxed);
        assert!(is_ready(), "it has not sent enough");
        kept.sent.fetch_add(1, Relaxed);
        assert!(!is_ready(), "it pauses, whichever answers that were");
        assert!(is_ready(), "it has paused");
    }
}
