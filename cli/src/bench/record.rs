//! What is measured while a run goes on.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use longwire_client::{AckLevel, Error};

use super::plan::Slot;
use super::timeline::Timeline;

/// Longer times count as this.
const TIME_MAX_NS: u64 = 3_600_000_000_000;

/// An empty histogram of times in nanoseconds.
pub(super) fn times() -> Histogram<u64> {
    // Three digits are what the clock and the machine are good for; these bounds are allowed.
    Histogram::new_with_bounds(1, TIME_MAX_NS, 3).unwrap_or_else(|_| unreachable!("valid bounds"))
}

/// Adds a time to such a histogram.
pub(super) fn note_time(times: &mut Histogram<u64>, time: Duration) {
    times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

/// Adds all times of one such histogram to another.
pub(super) fn merge_times(into: &mut Histogram<u64>, from: &Histogram<u64>) {
    // All have the same bounds, so nothing can be out of range.
    let _ = into.add(from);
}

/// What one client has done. Those of all clients are merged at the end, so percentiles are over
/// all messages.
#[derive(Debug)]
pub(super) struct Record {
    /// All, the warm-up included.
    pub(super) total: Amount,
    /// What was measured.
    pub(super) measured: Amount,
    pub(super) latency: Histogram<u64>,
    pub(super) timeline: Timeline,
    /// When the last of it was done.
    pub(super) last: Option<Instant>,
    /// The lowest that any acknowledged message has reached.
    pub(super) level: Option<AckLevel>,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) first_error: Option<Error>,
}

/// Messages, and bytes of bodies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) messages: u64,
    pub(super) bytes: u64,
}

impl Amount {
    pub(super) fn add(&mut self, other: Amount) {
        self.messages += other.messages;
        self.bytes += other.bytes;
    }
}

impl Record {
    /// Nothing yet, of a run that is measured from `start` on.
    pub(super) fn new(start: Instant) -> Record {
        Record {
            total: Amount::default(),
            measured: Amount::default(),
            latency: times(),
            timeline: Timeline::new(start),
            last: None,
            level: None,
            errors: BTreeMap::new(),
            first_error: None,
        }
    }

    /// A message was done.
    pub(super) fn message(&mut self, slot: Slot, at: Instant, bytes: u64) {
        let amount = Amount { messages: 1, bytes };
        self.total.add(amount);
        if slot.measured {
            self.measured(at, at.saturating_duration_since(slot.due), amount);
        }
    }

    /// A batch was done that is measured.
    pub(super) fn batch(&mut self, at: Instant, latency: Duration, amount: Amount) {
        self.total.add(amount);
        self.measured(at, latency, amount);
    }

    fn measured(&mut self, at: Instant, latency: Duration, amount: Amount) {
        self.measured.add(amount);
        note_time(&mut self.latency, latency);
        self.timeline.add(at, amount.messages, amount.bytes);
        self.last = self.last.max(Some(at));
    }

    /// A message was stored, and has reached this.
    pub(super) fn reached(&mut self, level: AckLevel) {
        self.level = Some(self.level.map_or(level, |lowest| lowest.min(level)));
    }

    /// Something failed.
    pub(super) fn failed(&mut self, error: &Error) {
        let name = match error.code() {
            Some(code) => code.to_string(),
            None => format!("{:?}", error.kind()),
        };
        *self.errors.entry(name).or_default() += 1;
        self.first_error.get_or_insert_with(|| error.clone());
    }

    pub(super) fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Adds what another client has done.
    pub(super) fn merge(&mut self, other: Record) {
        self.total.add(other.total);
        self.measured.add(other.measured);
        merge_times(&mut self.latency, &other.latency);
        self.timeline.merge(other.timeline);
        self.last = self.last.max(other.last);
        if let Some(level) = other.level {
            self.reached(level);
        }
        for (name, count) in other.errors {
            *self.errors.entry(name).or_default() += count;
        }
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

/// A record that several tasks write.
#[derive(Debug)]
pub(super) struct Recorder {
    record: Mutex<Record>,
    start: Instant,
}

impl Recorder {
    pub(super) fn new(start: Instant) -> Recorder {
        Recorder { record: Mutex::new(Record::new(start)), start }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it; what comes later is in nobody's report.
    pub(super) fn take(&self) -> Record {
        std::mem::replace(&mut *self.lock(), Record::new(self.start))
    }
}
