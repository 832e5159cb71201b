//! What a run shows while it goes on, on a terminal.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinHandle;

use super::record::{Amount, Recorder};
use crate::output::{count, grouped, mb_per_s};

const INTERVAL: Duration = Duration::from_millis(500);

/// A line with the current rate. Ends when dropped.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    task: Option<JoinHandle<()>>,
}

impl Progress {
    /// Shows what these have done, after what is being done. Hidden by itself where standard error
    /// is not a terminal.
    pub(super) fn start(
        quiet: bool,
        what: &'static str,
        recorders: Vec<Arc<Recorder>>,
    ) -> Progress {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        if bar.is_hidden() {
            return Progress { bar, task: None };
        }
        let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed}  {msg}");
        let bar = match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        bar.set_prefix(what);
        let task = tokio::spawn(show(bar.clone(), recorders));
        Progress { bar, task: Some(task) }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.bar.finish_and_clear();
    }
}

async fn show(bar: ProgressBar, recorders: Vec<Arc<Recorder>>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    let (mut seen, mut seen_at) = (Amount::default(), Instant::now());
    loop {
        ticks.tick().await;
        let (mut total, mut errors) = (Amount::default(), 0);
        for recorder in &recorders {
            let record = recorder.lock();
            total.add(record.total);
            errors += record.error_count();
        }
        let took = seen_at.elapsed();
        let messages = total.messages.saturating_sub(seen.messages) as f64;
        let rate = messages / took.as_secs_f64().max(1e-6);
        bar.set_message(format!(
            "{}, {} messages/s, {:.1} MB/s, {}",
            count(total.messages, "message"),
            grouped(rate as u64),
            mb_per_s(total.bytes.saturating_sub(seen.bytes), took),
            count(errors, "error"),
        ));
        bar.tick();
        (seen, seen_at) = (total, Instant::now());
    }
}
