//! Calls of the dispatcher's thread, and who dispatches: nothing that was appended is left undone.

use std::sync::Arc;

use loom::thread;

use crate::call::Call;
use crate::model;
use crate::sync::Mutex;
use crate::watermark::Watermark;

struct Views {
    call: Call,
    /// Held by whoever dispatches.
    pass: Mutex<()>,
    written: Watermark,
    dispatched: Watermark,
}

impl Views {
    fn new() -> Arc<Views> {
        let (call, pass) = (Call::default(), Mutex::default());
        let (written, dispatched) = (Watermark::new(0), Watermark::new(0));
        Arc::new(Views { call, pass, written, dispatched })
    }

    /// `Dispatcher::run`.
    fn run(self: &Arc<Views>) -> thread::JoinHandle<()> {
        let views = self.clone();
        thread::spawn(move || {
            while views.call.wait() {
                let to = views.written.get();
                let _pass = views.pass.lock();
                views.dispatched.advance(to);
            }
        })
    }

    /// `Dispatcher::appended`: on this thread if nobody else is at it, else the thread is called.
    fn appended(&self, end: u64) {
        self.written.advance(end);
        match self.pass.try_lock() {
            Some(_pass) => self.dispatched.advance(self.written.get()),
            None => self.call.raise(),
        }
    }
}

#[test]
fn a_thread_that_is_called_does_everything_it_was_called_for_and_stops() {
    model(|| {
        let views = Views::new();
        let thread = views.run();
        let other = thread::spawn({
            let views = views.clone();
            move || {
                views.written.advance(1);
                views.call.raise();
            }
        });
        views.dispatched.wait(1).unwrap();
        views.call.stop();
        other.join().unwrap();
        thread.join().unwrap();
    });
}

#[test]
fn what_is_appended_while_another_dispatches_is_dispatched_too() {
    model(|| {
        let views = Views::new();
        let thread = views.run();
        let other = thread::spawn({
            let views = views.clone();
            move || views.appended(1)
        });
        views.appended(2);
        views.dispatched.wait(2).unwrap();
        views.call.stop();
        other.join().unwrap();
        thread.join().unwrap();
    });
}

#[test]
fn a_stop_is_never_slept_through() {
    model(|| {
        let views = Views::new();
        let thread = views.run();
        let caller = thread::spawn({
            let views = views.clone();
            move || views.call.raise()
        });
        views.call.stop();
        thread.join().unwrap();
        caller.join().unwrap();
    });
}
