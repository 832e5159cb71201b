//! A message on its way.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::batch::Batch;
use crate::message::Receipt;
use crate::{Error, ErrorKind};

/// A message on its way: completes with where it was stored, or why it was not.
///
/// It may be dropped; the message is sent all the same, and a failure then shows in
/// [`Producer::flush`](super::Producer::flush).
#[derive(Debug)]
pub struct Delivery {
    batch: Batch,
    index: u32,
    slot: Option<usize>,
}

impl Delivery {
    pub(super) fn new(batch: Batch, index: u32) -> Delivery {
        Delivery { batch, index, slot: None }
    }

    /// Whether its message began its batch.
    pub(super) fn is_first(&self) -> bool {
        self.index == 0
    }
}

impl Future for Delivery {
    type Output = Result<Receipt, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        match this.batch.poll_decided(cx.waker(), &mut this.slot) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(this.batch.receipt(this.index).unwrap_or_else(|| {
                Err(Error::new(ErrorKind::Closed, "the batch was decided without an outcome"))
            })),
        }
    }
}
