//! Parked fetches: whatever order dispatcher, flusher and reader come in, a reader learns of news.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Poll, Wake, Waker};

use loom::future::block_on;
use loom::thread;

use crate::arrivals::{Arrival, Arrivals, Wanted};
use crate::model;
use crate::queue::Queue;
use crate::unflushed::Unflushed;
use crate::watermark::Watermark;

struct Shared {
    queues: [Arc<Queue>; 2],
    unflushed: Unflushed,
    durable: Watermark,
}

impl Shared {
    /// Both queues in one block, or each in a block of its own.
    fn new(blocks: usize) -> Arc<Shared> {
        let arrivals = [(); 2].map(|()| Arc::<Arrivals>::default());
        let queue = |id: usize| {
            let arrivals = arrivals[id % blocks].clone();
            Arc::new(Queue { bit: 1 << id, arrivals, ..Queue::default() })
        };
        let (queues, unflushed) = ([queue(0), queue(1)], Unflushed::default());
        Arc::new(Shared { queues, unflushed, durable: Watermark::new(0) })
    }

    /// What the dispatcher does with a record of a topic whose records are visible once durable.
    fn dispatch(&self, queue: usize, end: u64) {
        *self.queues[queue].end.lock() = end;
        self.unflushed.push(end, self.queues[queue].clone());
        self.unflushed.flushed(&self.durable);
    }

    /// What the flusher does after a sync.
    fn flush(&self, end: u64) {
        self.durable.advance(end);
        self.unflushed.flushed(&self.durable);
    }
}

struct News(Arc<Shared>);

impl Wanted for News {
    fn arrivals(&self, each: &mut dyn FnMut(&Arrivals, u64)) {
        self.0.queues.iter().for_each(|queue| each(&queue.arrivals, queue.bit));
    }

    fn has_news(&self) -> bool {
        let visible = |queue: &Arc<Queue>| (1..=self.0.durable.get()).contains(&*queue.end.lock());
        self.0.queues.iter().any(visible)
    }
}

/// Looks, and is parked while there is nothing.
fn read(shared: &Arc<Shared>) {
    while !News(shared.clone()).has_news() {
        block_on(Arrival::new(News(shared.clone())));
    }
}

#[test]
fn a_reader_learns_of_records_whether_dispatched_or_flushed_last() {
    for blocks in [1, 2] {
        model(move || {
            let shared = Shared::new(blocks);
            let reader = thread::spawn({
                let shared = shared.clone();
                move || read(&shared)
            });
            let flusher = thread::spawn({
                let shared = shared.clone();
                move || shared.flush(1)
            });
            shared.dispatch(1, 1);
            flusher.join().unwrap();
            reader.join().unwrap();
        });
    }
}

#[test]
fn a_reader_learns_of_records_that_need_no_flush() {
    model(|| {
        let shared = Shared::new(2);
        shared.flush(1);
        let reader = thread::spawn({
            let shared = shared.clone();
            move || read(&shared)
        });
        *shared.queues[0].end.lock() = 1;
        shared.queues[0].wake();
        reader.join().unwrap();
    });
}

#[test]
fn a_reader_who_leaves_takes_no_other_with_him() {
    model(|| {
        let shared = Shared::new(1);
        shared.flush(1);
        let reader = thread::spawn({
            let shared = shared.clone();
            move || read(&shared)
        });
        let leaver = thread::spawn({
            let shared = shared.clone();
            move || {
                // Its deadline is over at once: it registers, and is dropped.
                let mut arrival = std::pin::pin!(Arrival::new(News(shared)));
                block_on(std::future::poll_fn(|context| {
                    let _ = arrival.as_mut().poll(context);
                    Poll::Ready(())
                }));
            }
        });
        shared.dispatch(0, 1);
        reader.join().unwrap();
        leaver.join().unwrap();
    });
}

#[test]
fn a_reader_is_woken_once_and_only_by_what_it_waits_for() {
    model(|| {
        let arrivals = Arrivals::default();
        let woken = Arc::new(Count::default());
        let waker = Waker::from(woken.clone());
        arrivals.register(0b0001, &waker);
        arrivals.register(0b0100, &waker);
        arrivals.wake(0b0010);
        assert_eq!(woken.0.load(SeqCst), 0, "a neighbour's news");
        arrivals.wake(0b0100);
        arrivals.wake(0b0001);
        assert_eq!(woken.0.load(SeqCst), 1);
    });
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}
