//! The memory that requests may take while they are read, all connections together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes to be shared by all connections.
///
/// A connection that holds a part of its frame may need more while everyone else does too. So that
/// one of them can always finish, a single connection at a time may go over the budget, by no more
/// than one frame.
#[derive(Debug)]
pub(super) struct Budget {
    bytes: Arc<Semaphore>,
    overdraft: Arc<Semaphore>,
}

/// What one connection has taken. Given back when dropped.
#[derive(Debug, Default)]
pub(super) struct Charge {
    bytes: Option<OwnedSemaphorePermit>,
    overdraft: Option<OwnedSemaphorePermit>,
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Budget {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Budget { bytes: Arc::new(Semaphore::new(bytes)), overdraft: Arc::new(Semaphore::new(1)) }
    }

    /// Raises the charge to `total` bytes if there are so many left.
    pub(super) fn try_raise(&self, charge: &mut Charge, total: usize) -> bool {
        let missing = charge.missing(total);
        if missing == 0 {
            return true;
        }
        let permit = self.bytes.clone().try_acquire_many_owned(missing);
        permit.map(|permit| charge.add(permit)).is_ok()
    }

    /// Raises the charge to `total` bytes, waiting until there are so many left, or until it is
    /// this connection's turn to go over the budget.
    pub(super) async fn raise(&self, charge: &mut Charge, total: usize) {
        let missing = charge.missing(total);
        if missing == 0 {
            return;
        }
        // Neither semaphore is ever closed; a closed one would end the wait without a charge.
        tokio::select! {
            biased;
            permit = self.bytes.clone().acquire_many_owned(missing) => {
                permit.into_iter().for_each(|permit| charge.add(permit));
            }
            permit = self.overdraft.clone().acquire_owned() => charge.overdraft = permit.ok(),
        }
    }
}

impl Charge {
    /// Whether this connection is the one that may go over the budget.
    pub(super) fn is_overdrawn(&self) -> bool {
        self.overdraft.is_some()
    }

    fn missing(&self, total: usize) -> u32 {
        if self.overdraft.is_some() {
            return 0;
        }
        let held = self.bytes.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        u32::try_from(total.saturating_sub(held)).unwrap_or(u32::MAX)
    }

    fn add(&mut self, permit: OwnedSemaphorePermit) {
        match &mut self.bytes {
            Some(held) => held.merge(permit),
            None => self.bytes = Some(permit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_connection_can_always_finish_its_frame() {
        let budget = Budget::new(100);
        let (mut a, mut b, mut c) = (Charge::default(), Charge::default(), Charge::default());
        assert!(budget.try_raise(&mut a, 60) && budget.try_raise(&mut b, 40));
        assert!(!budget.try_raise(&mut a, 61));

        // Both hold a part and want more: one gets through, the other waits for it.
        budget.raise(&mut a, 100).await;
        let mut waiting = Box::pin(budget.raise(&mut b, 100));
        assert!(futures_pending(&mut waiting).await);
        drop(a);
        waiting.await;
        assert!(!budget.try_raise(&mut c, 1), "b has it all");
        drop(b);
        assert!(budget.try_raise(&mut c, 100), "all of it has come back");
    }

    async fn futures_pending(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())
        })
        .await
    }
}
