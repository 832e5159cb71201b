//! The memory that requests may take while they are read, all connections together.

use std::collections::BTreeMap;
use std::mem::take;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

/// A peer whose frame holds memory others wait for has to send so much of it a second, ...
const RATE_MIN: f64 = 512.0 * 1024.0;
/// ... and may fall behind by so much.
const GRACE: Duration = Duration::from_secs(1);

/// How often to look for peers that are behind, as long as somebody waits.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Bytes to be shared by all connections.
///
/// A connection that holds a part of its frame may need more while everyone else does too. So that
/// one of them can always finish, a single connection at a time may go over the budget, by no more
/// than one frame: the one that has waited longest. What comes free otherwise goes to those who
/// need the least, so that few large frames cannot hold up many small ones.
///
/// Whoever waits sees to it that nobody keeps memory without sending: connections whose unfinished
/// frames come too slowly are called in, those first that have cost the others the most.
#[derive(Debug)]
pub(super) struct Budget {
    state: Mutex<State>,
    /// Held by the one among those who wait that looks for slow frames.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Somebody has gone over the budget.
    overdrawn: bool,
    /// By what they need, and then by who came first.
    waiting: BTreeMap<Claim, oneshot::Sender<Grant>>,
    /// Frames that hold memory and wait for their peers to send the rest.
    unfinished: BTreeMap<u64, Unfinished>,
    next_id: u64,
}

/// Bytes needed, and the number of who needs them.
type Claim = (usize, u64);

#[derive(Debug, Clone, Copy)]
enum Grant {
    Bytes,
    Overdraft,
}

#[derive(Debug)]
struct Unfinished {
    peer: SocketAddr,
    held: usize,
    /// When something must have come. What comes puts it off, never by more than [`GRACE`].
    due: Instant,
    call_in: oneshot::Sender<()>,
}

/// What one connection has taken. Given back when dropped.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    peer: SocketAddr,
    held: usize,
    overdrawn: bool,
    unfinished: Option<Watch>,
}

/// The connection's side of its entry among the unfinished.
#[derive(Debug)]
struct Watch {
    id: u64,
    /// How much of the frame there was.
    arrived: usize,
    called_in: oneshot::Receiver<()>,
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Arc<Budget> {
        let state = State {
            free: usize::try_from(bytes).unwrap_or(usize::MAX),
            overdrawn: false,
            waiting: BTreeMap::new(),
            unfinished: BTreeMap::new(),
            next_id: 0,
        };
        Arc::new(Budget { state: Mutex::new(state), looking: tokio::sync::Mutex::default() })
    }

    /// The account of a connection.
    pub(super) fn charge(self: &Arc<Self>, peer: SocketAddr) -> Charge {
        Charge { budget: self.clone(), peer, held: 0, overdrawn: false, unfinished: None }
    }

    /// Calls in slow frames from now on. Never returns.
    async fn look_for_slow(&self) {
        let _only_one = self.looking.lock().await;
        loop {
            self.state.lock().call_in_slow();
            sleep(LOOK_PAUSE).await;
        }
    }
}

impl State {
    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn give_back(&mut self, bytes: usize, overdrawn: bool) {
        self.free += bytes;
        self.overdrawn &= !overdrawn;
        self.settle();
    }

    /// Grants what can be granted.
    fn settle(&mut self) {
        while let Some(&least) = self.waiting.keys().next() {
            let (claim, grant) = if least.0 <= self.free {
                self.free -= least.0;
                (least, Grant::Bytes)
            } else if !self.overdrawn {
                self.overdrawn = true;
                let oldest = self.waiting.keys().copied().min_by_key(|&(_, id)| id);
                (oldest.unwrap_or(least), Grant::Overdraft)
            } else {
                return;
            };
            // Its receiver is there as long as the claim is: `Wait` withdraws both.
            let _ = self.waiting.remove(&claim).map(|granted| granted.send(grant));
        }
    }

    /// Calls in as many as are needed for the first of those who wait.
    fn call_in_slow(&mut self) {
        let Some(&(needed, _)) = self.waiting.keys().next() else { return };
        let now = Instant::now();
        let late = self.unfinished.iter().filter(|(_, frame)| frame.due < now);
        // What each has cost the others: memory, and for how long.
        let cost = |frame: &Unfinished| frame.held as f64 * (now - frame.due).as_secs_f64();
        let mut late: Vec<(f64, u64)> = late.map(|(&id, frame)| (cost(frame), id)).collect();
        late.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let (mut free, mut closed, mut first) = (self.free, 0, None);
        for (_, id) in late {
            if free >= needed {
                break;
            }
            let Some(frame) = self.unfinished.remove(&id) else { continue };
            free += frame.held;
            closed += 1;
            first.get_or_insert(frame.peer);
            let _ = frame.call_in.send(());
        }
        // One line for all of them, however many an attacker makes it.
        if let Some(peer) = first {
            tracing::warn!(
                closed,
                %peer,
                "memory for requests is short: closing connections whose frames come too slowly"
            );
        }
    }
}

impl Charge {
    /// Raises the charge to `total` bytes if there are so many left.
    pub(super) fn try_raise(&mut self, total: usize) -> bool {
        let missing = self.missing(total);
        let mut state = self.budget.state.lock();
        let fits = missing <= state.free;
        if fits {
            state.free -= missing;
            self.held += missing;
        }
        fits
    }

    /// Raises the charge to `total` bytes, waiting until there are so many left, or until it is
    /// this connection's turn to go over the budget.
    pub(super) async fn raise(&mut self, total: usize) {
        let claimed = self.missing(total);
        let budget = self.budget.clone();
        let mut wait = Wait::begin(&budget, claimed);
        let granted = tokio::select! {
            biased;
            granted = &mut wait.granted => granted,
            () = budget.look_for_slow() => return,
        };
        match granted {
            Ok(Grant::Bytes) => self.held += claimed,
            // The sender is only dropped once it has sent.
            Ok(Grant::Overdraft) | Err(_) => self.overdrawn = true,
        }
    }

    /// Whether this connection is the one that may go over the budget.
    pub(super) fn is_overdrawn(&self) -> bool {
        self.overdrawn
    }

    /// Says that it is the peer's turn to send more of a frame of which `arrived` bytes are there.
    pub(super) fn awaits_peer(&mut self, arrived: usize) {
        if self.held == 0 && !self.overdrawn {
            return;
        }
        let latest = Instant::now() + GRACE;
        let mut state = self.budget.state.lock();
        let Some(watch) = &mut self.unfinished else {
            let id = state.new_id();
            let (call_in, called_in) = oneshot::channel();
            let frame = Unfinished { peer: self.peer, held: self.held, due: latest, call_in };
            state.unfinished.insert(id, frame);
            self.unfinished = Some(Watch { id, arrived, called_in });
            return;
        };
        let news = arrived.saturating_sub(watch.arrived);
        watch.arrived = arrived;
        if let Some(frame) = state.unfinished.get_mut(&watch.id) {
            frame.due = latest.min(frame.due + Duration::from_secs_f64(news as f64 / RATE_MIN));
            frame.held = self.held;
        }
    }

    /// Says that nothing more is expected of the peer: the frame is there, or has to wait itself.
    pub(super) fn awaits_nothing(&mut self) {
        if let Some(watch) = self.unfinished.take() {
            self.budget.state.lock().unfinished.remove(&watch.id);
        }
    }

    /// Completes if the frame comes too slowly and others wait for its memory.
    pub(super) async fn called_in(&mut self) {
        match &mut self.unfinished {
            // The sender is dropped unused only together with this.
            Some(watch) => drop((&mut watch.called_in).await),
            None => std::future::pending().await,
        }
    }

    /// Gives everything back.
    pub(super) fn release(&mut self) {
        self.awaits_nothing();
        let (held, overdrawn) = (take(&mut self.held), take(&mut self.overdrawn));
        if held > 0 || overdrawn {
            self.budget.state.lock().give_back(held, overdrawn);
        }
    }

    fn missing(&self, total: usize) -> usize {
        if self.overdrawn { 0 } else { total.saturating_sub(self.held) }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.release();
    }
}

/// A place among those who wait.
struct Wait<'a> {
    budget: &'a Budget,
    claim: Claim,
    granted: oneshot::Receiver<Grant>,
}

impl Wait<'_> {
    fn begin(budget: &Budget, needed: usize) -> Wait<'_> {
        let (grant, granted) = oneshot::channel();
        let mut state = budget.state.lock();
        let claim = (needed, state.new_id());
        state.waiting.insert(claim, grant);
        state.settle();
        Wait { budget, claim, granted }
    }
}

impl Drop for Wait<'_> {
    /// Withdraws the claim, or gives back what was granted and not taken.
    fn drop(&mut self) {
        let mut state = self.budget.state.lock();
        state.waiting.remove(&self.claim);
        match self.granted.try_recv() {
            Ok(Grant::Bytes) => state.give_back(self.claim.0, false),
            Ok(Grant::Overdraft) => state.give_back(0, true),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    fn peer() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1))
    }

    async fn is_pending(future: &mut (impl Future<Output = ()> + Unpin)) -> bool {
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())
        })
        .await
    }

    #[tokio::test]
    async fn one_connection_can_always_finish_its_frame() {
        let budget = Budget::new(100);
        let [mut a, mut b, mut c] = [(); 3].map(|()| budget.charge(peer()));
        assert!(a.try_raise(60) && b.try_raise(40));
        assert!(!a.try_raise(61));

        // Both hold a part and want more: one gets through, the other waits for it.
        a.raise(100).await;
        {
            let mut waiting = pin!(b.raise(100));
            assert!(is_pending(&mut waiting).await);
            drop(a);
            waiting.await;
        }
        assert!(!c.try_raise(1), "b has it all");
        drop(b);
        assert!(c.try_raise(100), "all of it has come back");
    }

    #[tokio::test]
    async fn who_needs_little_does_not_wait_behind_who_needs_much() {
        let budget = Budget::new(100);
        let [mut full, mut over, mut much, mut little] = [(); 4].map(|()| budget.charge(peer()));
        assert!(full.try_raise(100));
        over.raise(100).await;
        let mut much = Box::pin(much.raise(100));
        assert!(is_pending(&mut much).await);
        {
            let mut little = pin!(little.raise(10));
            assert!(is_pending(&mut little).await);
            drop(full);
            little.await;
        }
        assert!(is_pending(&mut much).await);
        drop(over);
        much.await;
    }

    #[tokio::test]
    async fn a_grant_nobody_takes_any_more_is_not_lost() {
        let budget = Budget::new(100);
        let [mut full, mut over, mut gone, mut next] = [(); 4].map(|()| budget.charge(peer()));
        assert!(full.try_raise(100));
        over.raise(10).await;
        let mut waiting = Box::pin(gone.raise(100));
        assert!(is_pending(&mut waiting).await);
        drop(full);
        drop(waiting);
        assert!(next.try_raise(100));
        let mut waiting = Box::pin(gone.raise(100));
        assert!(is_pending(&mut waiting).await);
        drop(over);
        drop(waiting);
        gone.raise(100).await;
        assert!(gone.is_overdrawn());
    }

    #[tokio::test(start_paused = true)]
    async fn only_those_behind_are_called_in_and_only_for_what_is_needed() {
        let budget = Budget::new(100 << 20);
        let [mut fast, mut slow, mut stuck, mut over] = [(); 4].map(|()| budget.charge(peer()));
        assert!(fast.try_raise(40 << 20) && slow.try_raise(20 << 20) && stuck.try_raise(40 << 20));
        over.raise(1).await;
        fast.awaits_peer(0);
        slow.awaits_peer(0);
        // A burst earns no more time than there was.
        stuck.awaits_peer(0);
        stuck.awaits_peer(30 << 20);
        for second in 1..10 {
            sleep(Duration::from_secs(1)).await;
            fast.awaits_peer(second << 20);
            slow.awaits_peer(second);
        }
        let [mut new, mut more] = [(); 2].map(|()| budget.charge(peer()));
        {
            let mut waiting = pin!(new.raise(1 << 20));
            assert!(is_pending(&mut waiting).await);
            stuck.called_in().await;
            assert!(is_pending(&mut pin!(slow.called_in())).await, "that is enough");
            stuck.release();
            waiting.await;
        }
        let mut waiting = pin!(more.raise(60 << 20));
        assert!(is_pending(&mut waiting).await);
        slow.called_in().await;
        assert!(is_pending(&mut pin!(fast.called_in())).await, "it keeps up");
    }
}
