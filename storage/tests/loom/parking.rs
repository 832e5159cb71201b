//! Parked fetches: whatever order dispatcher, flusher and reader come in, a reader learns of news.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;

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
    fn new() -> Arc<Shared> {
        let (queues, unflushed) = (Default::default(), Unflushed::default());
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
    fn arrivals(&self, each: &mut dyn FnMut(&Arrivals)) {
        self.0.queues.iter().for_each(|queue| each(queue.arrivals()));
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
    model(|| {
        let shared = Shared::new();
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

#[test]
fn a_reader_learns_of_records_that_need_no_flush() {
    model(|| {
        let shared = Shared::new();
        shared.flush(1);
        let reader = thread::spawn({
            let shared = shared.clone();
            move || read(&shared)
        });
        *shared.queues[0].end.lock() = 1;
        shared.queues[0].arrivals().wake();
        reader.join().unwrap();
    });
}

#[test]
fn a_reader_who_leaves_takes_no_other_with_him() {
    model(|| {
        let shared = Shared::new();
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
