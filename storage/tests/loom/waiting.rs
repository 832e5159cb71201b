//! The watermark: nobody who waits is forgotten, and nobody is let go too early.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Context;

use loom::future::block_on;
use loom::thread;

use crate::model;
use crate::watermark::Watermark;

#[test]
fn threads_and_futures_wake_at_their_positions_and_not_before() {
    model(|| {
        let mark = Arc::new(Watermark::new(0));
        let blocked = thread::spawn({
            let mark = mark.clone();
            move || {
                mark.wait(1).unwrap();
                assert!(mark.get() >= 1);
            }
        });
        let polled = thread::spawn({
            let mark = mark.clone();
            move || {
                block_on(mark.reached(2)).unwrap();
                assert!(mark.get() >= 2);
            }
        });
        mark.advance(1);
        mark.advance(2);
        blocked.join().unwrap();
        polled.join().unwrap();
    });
}

#[test]
fn two_who_raise_it_leave_nobody_waiting() {
    model(|| {
        let mark = Arc::new(Watermark::new(0));
        let raise = |position| {
            let mark = mark.clone();
            thread::spawn(move || mark.advance(position))
        };
        let (lower, higher) = (raise(1), raise(2));
        mark.wait(2).unwrap();
        lower.join().unwrap();
        higher.join().unwrap();
        assert_eq!(mark.get(), 2, "it never falls");
    });
}

#[test]
fn closing_ends_every_wait_for_what_is_not_reached() {
    model(|| {
        let mark = Arc::new(Watermark::new(0));
        let waiter = thread::spawn({
            let mark = mark.clone();
            move || (mark.wait(1).is_ok(), mark.wait(2).is_ok())
        });
        let raiser = thread::spawn({
            let mark = mark.clone();
            move || mark.advance(1)
        });
        mark.close(&"gone".into());
        raiser.join().unwrap();
        assert!(!waiter.join().unwrap().1, "nobody reached 2");
        assert!(mark.wait(1).is_ok(), "what was reached stays reached");
    });
}

#[test]
fn one_who_gives_up_takes_nobody_with_him() {
    model(|| {
        let mark = Arc::new(Watermark::new(0));
        let waiter = thread::spawn({
            let mark = mark.clone();
            move || mark.wait(1).unwrap()
        });
        let quitter = thread::spawn({
            let mark = mark.clone();
            move || {
                let reached = pin!(mark.reached(1));
                let waker = std::task::Waker::noop();
                let _ = reached.poll(&mut Context::from_waker(waker));
            }
        });
        mark.advance(1);
        waiter.join().unwrap();
        quitter.join().unwrap();
    });
}
