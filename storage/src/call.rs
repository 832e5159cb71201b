//! Calling a thread to work.

use crate::sync::{Condvar, Mutex};

/// Calls a thread: any number of calls before it answers are one.
#[derive(Debug, Default)]
pub(crate) struct Call {
    /// (called, stopped)
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Call {
    pub(crate) fn raise(&self) {
        self.state.lock().0 = true;
        self.changed.notify_one();
    }

    pub(crate) fn stop(&self) {
        self.state.lock().1 = true;
        self.changed.notify_one();
    }

    /// Waits for a call; `false` once stopped.
    pub(crate) fn wait(&self) -> bool {
        let mut state = self.state.lock();
        while *state == (false, false) {
            self.changed.wait(&mut state);
        }
        state.0 = false;
        !state.1
    }
}
