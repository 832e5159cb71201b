//! Bounds what messages hold in memory while they are being received.
//!
//! The gRPC library takes in as much of a message as comes, up to its limit of 4 MiB, for as long as the
//! client takes to send the rest, on each of a connection's 128 streams.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use longwire_proto::ErrorCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

/// What all unfinished messages may hold together.
const HELD_BYTES_MAX: usize = 64 << 20;
/// What each may hold anyhow, so that large ones never keep out small ones, which nearly all are.
const FREE_BYTES: usize = 4 << 10;
/// What stands before a gRPC message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// The memory for unfinished messages, shared by all connections.
#[derive(Debug, Clone)]
pub(super) struct Intake {
    held: Arc<Semaphore>,
    /// How long the rest of a message may take once it has begun.
    timeout: Duration,
}

impl Intake {
    pub(super) fn new(timeout: Duration) -> Intake {
        Intake { held: Arc::new(Semaphore::new(HELD_BYTES_MAX)), timeout }
    }

    /// The same body, which fails where it would hold too much, or is too slow.
    pub(super) fn meter(&self, body: Body) -> Body {
        Body::new(Metered {
            body,
            intake: self.clone(),
            message: Message::default(),
            held: None,
            deadline: None,
        })
    }
}

/// A request's body.
struct Metered {
    body: Body,
    intake: Intake,
    message: Message,
    /// What the unfinished message holds.
    held: Option<OwnedSemaphorePermit>,
    /// When it must be finished.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Metered {
    /// Takes note of bytes that have come.
    fn take(&mut self, bytes: &[u8]) -> Result<(), Status> {
        let came_to_an_end = self.message.take(bytes);
        if came_to_an_end {
            // It is decoded before more is asked for.
            (self.held, self.deadline) = (None, None);
        }
        if self.message.bytes == 0 {
            return Ok(());
        }
        let timeout = self.intake.timeout;
        self.deadline.get_or_insert_with(|| Box::pin(sleep(timeout)));
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = self.message.bytes.saturating_sub(FREE_BYTES + held);
        let Ok(more) = self.intake.held.clone().try_acquire_many_owned(missing as u32) else {
            let message = "too many large requests at once";
            return Err(longwire_proto::status(ErrorCode::Overloaded, message));
        };
        match &mut self.held {
            Some(held) => held.merge(more),
            held => *held = Some(more),
        }
        Ok(())
    }
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            let taken = match &frame {
                Some(Ok(frame)) => frame.data_ref().map_or(Ok(()), |bytes| self.take(bytes)),
                _ => Ok(()),
            };
            return Poll::Ready(match taken {
                Ok(()) => frame,
                Err(status) => Some(Err(status)),
            });
        }
        let Some(deadline) = &mut self.deadline else {
            return Poll::Pending;
        };
        ready!(deadline.as_mut().poll(context));
        let message =
            format!("the rest of a request did not come within {:?}", self.intake.timeout);
        Poll::Ready(Some(Err(longwire_proto::status(ErrorCode::Timeout, message))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Where one message ends and the next begins.
#[derive(Debug, Default)]
struct Message {
    /// How much of the unfinished one has come, prefix included; 0 between two.
    bytes: usize,
    prefix: [u8; PREFIX_BYTES],
}

impl Message {
    /// Goes on by these bytes. Whether a message came to its end in them.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        let mut ended = false;
        while !bytes.is_empty() {
            let prefix = self.prefix.get_mut(self.bytes..).unwrap_or_default();
            let of_prefix = prefix.len().min(bytes.len());
            prefix[..of_prefix].copy_from_slice(&bytes[..of_prefix]);
            self.bytes += of_prefix;
            bytes = &bytes[of_prefix..];
            if self.bytes < PREFIX_BYTES {
                break;
            }
            let [_, length @ ..] = self.prefix;
            let missing = PREFIX_BYTES + u32::from_be_bytes(length) as usize - self.bytes;
            let of_message = missing.min(bytes.len());
            self.bytes += of_message;
            bytes = &bytes[of_message..];
            if of_message == missing {
                self.bytes = 0;
                ended = true;
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http_body::Body as _;
    use tokio::sync::mpsc;

    use super::*;

    /// A body of what is sent.
    struct Sent(mpsc::UnboundedReceiver<Vec<u8>>);

    impl http_body::Body for Sent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(context).map(|sent| Some(Ok(Frame::data(sent?.into()))))
        }
    }

    fn body(intake: &Intake) -> (mpsc::UnboundedSender<Vec<u8>>, Body) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (sender, intake.meter(Body::new(Sent(receiver))))
    }

    async fn next(body: &mut Body) -> Result<usize, Status> {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await.unwrap();
        frame.map(|frame| frame.into_data().unwrap().len())
    }

    fn message(bytes: usize) -> Vec<u8> {
        let mut message = vec![0; PREFIX_BYTES + bytes];
        message[1..PREFIX_BYTES].copy_from_slice(&(bytes as u32).to_be_bytes());
        message
    }

    #[tokio::test]
    async fn unfinished_messages_hold_no_more_than_they_may_and_others_are_received() {
        let intake = Intake::new(Duration::from_secs(60));
        let large = message(4 << 20);
        let mut bodies = Vec::new();
        for _ in 0..16 {
            let (sender, mut body) = body(&intake);
            for part in large[..4 << 20].chunks(100_000) {
                sender.send(part.to_vec()).unwrap();
                next(&mut body).await.unwrap();
            }
            bodies.push((sender, body));
        }
        let (sender, mut refused) = body(&intake);
        sender.send(large[..200_000].to_vec()).unwrap();
        let status = next(&mut refused).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}");
        let (sender, mut small) = body(&intake);
        for part in message(FREE_BYTES - PREFIX_BYTES).chunks(3) {
            sender.send(part.to_vec()).unwrap();
            assert_eq!(next(&mut small).await.unwrap(), part.len());
        }

        // One that is finished, and one whose client has gone, give back what they held.
        let (sender, body_of_first) = &mut bodies[0];
        sender.send(large[4 << 20..].to_vec()).unwrap();
        next(body_of_first).await.unwrap();
        assert!(intake.held.available_permits() > 3 << 20);
        bodies.clear();
        assert_eq!(intake.held.available_permits(), HELD_BYTES_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_is_begun_must_go_on_and_between_two_there_is_time() {
        let intake = Intake::new(Duration::from_secs(30));
        let (sender, mut body) = body(&intake);
        let sending = async {
            sender.send([message(10), message(7)].concat()).unwrap();
            sleep(Duration::from_secs(3_600)).await;
            sender.send(message(10)[..7].to_vec()).unwrap();
            std::future::pending::<()>().await;
        };
        let receiving = async {
            assert_eq!(next(&mut body).await.unwrap(), 27);
            assert_eq!(next(&mut body).await.unwrap(), 7);
            next(&mut body).await.unwrap_err()
        };
        tokio::select! {
            () = sending => {}
            status = receiving => assert_eq!(status.code(), tonic::Code::DeadlineExceeded),
        }
    }
}
