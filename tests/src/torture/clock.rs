//! The broker's clock jumps: an hour, ten years, ahead and back, and to and fro.
//!
//! libfaketime stands between the broker and the time of day; the file it reads the difference from is
//! changed while the broker runs. The monotonic clock goes on as ever.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use longwire_client::NewTopic;
use rustix::process::Signal;

use super::committer::{Committer, Offsets, committed_offsets};
use super::scene::{GROUP, Scene};
use super::{Options, PATIENCE, Report, runtime, start};
use crate::broker_process::{BrokerCommand, BrokerProcess};
use crate::frame_client::{FrameClient, fetch};
use crate::segment_reader::Message;
use crate::wait::try_within;

const SHORT_RUN: u64 = 1;
const HOUR_S: i64 = 3_600;
const YEARS_S: i64 = 10 * 365 * 24 * HOUR_S;
/// By how much the clock then differs from the true time, one after another.
const JUMPS_S: [i64; 14] =
    [HOUR_S, 0, -HOUR_S, 0, 1, -1, 1, -1, 1, -1, YEARS_S, 0, -YEARS_S, YEARS_S];
/// A topic that stays empty.
const EMPTY: &str = "empty";
/// How long a fetch waits for what never comes, and when at the latest it has been answered.
const WAIT: Duration = Duration::from_millis(200);
const WAITED_MAX: Duration = Duration::from_secs(2);
const RETENTION_INTERVAL: Duration = Duration::from_millis(500);
const WATCHED: Duration = Duration::from_millis(2_500);
const SEGMENTS_MIN: f64 = 14.0;

pub(super) fn run(options: &Options) -> Report {
    let mut report = Report::new("clock", options);
    let Some(library) = faketime_library() else {
        report.skip("libfaketime is not installed (Debian: faketime)");
        return report;
    };
    for _ in 0..options.count.unwrap_or(SHORT_RUN) {
        report.cycles += 1;
        let outcome = runtime().block_on(async {
            jumps(&library, options, &mut report).await?;
            for jump_s in [HOUR_S, YEARS_S] {
                retention(&library, jump_s, options, &mut report).await?;
            }
            Ok::<(), String>(())
        });
        if let Err(problem) = outcome {
            report.violation(problem);
        }
    }
    report
}

/// Where the library is that stands in for the system's clock in a process with threads.
fn faketime_library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    let folders = folders.chain([PathBuf::from("/usr/lib")]);
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}

/// The clock of one broker.
struct Clock(PathBuf);

impl Clock {
    fn right(folder: &Path) -> Result<Clock, String> {
        let clock = Clock(folder.join("clock"));
        clock.differ_by(0)?;
        Ok(clock)
    }

    fn differ_by(&self, seconds: i64) -> Result<(), String> {
        // Renamed, so that half a number is never read.
        let aside = self.0.with_extension("aside");
        let written = fs::write(&aside, format!("{seconds:+}\n"));
        let moved = written.and_then(|()| fs::rename(&aside, &self.0));
        moved.map_err(|error| format!("the clock's file: {error}"))
    }

    fn command(&self, library: &Path, store: PathBuf, options: &Options) -> BrokerCommand {
        BrokerCommand::new(store)
            .plant(options.plant)
            .env("LD_PRELOAD", library.display().to_string())
            .env("FAKETIME_TIMESTAMP_FILE", self.0.display().to_string())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
            .set("storage.segment_bytes=1MiB")
            .set("storage.checkpoint_interval=200ms")
    }
}

fn folder() -> Result<tempfile::TempDir, String> {
    tempfile::tempdir().map_err(|error| error.to_string())
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

/// Every jump, under load: nothing is lost, times in the log never fall, and nobody is thrown out.
async fn jumps(library: &Path, options: &Options, report: &mut Report) -> Result<(), String> {
    let folder = folder()?;
    let clock = Clock::right(folder.path())?;
    let command = clock.command(library, folder.path().join("store"), options);
    let command = command.set("storage.retention_age=none");
    let scene = Scene::start(command, false, Duration::from_millis(1)).await?;
    let topic = NewTopic::new(EMPTY).queues(1);
    scene.client.admin().create_topic(topic).await.map_err(|error| error.to_string())?;
    let committer = scene.committer(Offsets::new()).await?;
    for seconds in JUMPS_S {
        clock.differ_by(seconds)?;
        goes_on(&scene, &committer)
            .await
            .map_err(|problem| format!("at {seconds} s: {problem}"))?;
    }
    let commits = committer.stop().await?;
    let committed = committed_offsets(&scene.client, GROUP).await?;
    commits.problems(&committed).iter().for_each(|problem| report.violation(problem));
    let (_, messages) = scene.finish(report).await?;
    check_times(&messages, report);
    Ok(())
}

async fn goes_on(scene: &Scene, committer: &Committer) -> Result<(), String> {
    let address = scene.broker.addresses().data;
    let parked = tokio::task::spawn_blocking(move || {
        let mut client = FrameClient::connect(address);
        let began = Instant::now();
        client.fetch(fetch(EMPTY, &[(0, 0)], 1, WAIT));
        began.elapsed()
    });
    scene.acks(100, PATIENCE).await?;
    committer.commits(1).await?;
    let waited = try_within("a parked fetch", PATIENCE, parked).await?;
    let waited = waited.map_err(|error| error.to_string())?;
    match waited {
        _ if (WAIT..WAITED_MAX).contains(&waited) => Ok(()),
        _ => Err(format!("a fetch that was to wait for {WAIT:?} was answered after {waited:?}")),
    }
}

fn check_times(messages: &[Message], report: &mut Report) {
    let mut newest_ms = 0;
    for message in messages {
        if message.store_timestamp_ms < newest_ms {
            report.violation(format!(
                "the record at {} was stored {} ms before the one in front of it",
                message.position,
                newest_ms - message.store_timestamp_ms
            ));
        }
        newest_ms = newest_ms.max(message.store_timestamp_ms);
    }
    let ahead_s = (newest_ms - now_ms()) / 1_000;
    if ahead_s < YEARS_S / 2 {
        report.violation(format!("the clock did not jump: the newest time is {ahead_s} s ahead"));
    }
}

/// A jump ahead makes everything look old: no more than one segment goes in each pass.
async fn retention(
    library: &Path,
    jump_s: i64,
    options: &Options,
    report: &mut Report,
) -> Result<(), String> {
    let folder = folder()?;
    let clock = Clock::right(folder.path())?;
    let command = clock
        .command(library, folder.path().join("store"), options)
        .set("storage.retention_age=30min")
        .set(format!("storage.retention_check_interval={}ms", RETENTION_INTERVAL.as_millis()));
    let mut scene = Scene::start(command, false, Duration::ZERO).await?;
    while segments(&scene.broker) < SEGMENTS_MIN {
        scene.acks(200, PATIENCE).await?;
    }
    clock.differ_by(jump_s)?;
    watch(&scene.broker, &format!("of {jump_s} s"), report).await;
    // A start cannot know how long the broker was away, and has to be as careful.
    scene.broker.signal(Signal::KILL);
    scene.broker.wait();
    scene.broker = start(scene.command())?;
    watch(&scene.broker, &format!("of {jump_s} s and a restart"), report).await;
    Ok(())
}

async fn watch(broker: &BrokerProcess, jump: &str, report: &mut Report) {
    let (before, began) = (first_position(broker), Instant::now());
    tokio::time::sleep(WATCHED).await;
    let removed = (first_position(broker) - before) / f64::from(1 << 20);
    let passes = began.elapsed().div_duration_f64(RETENTION_INTERVAL).ceil();
    if removed > passes {
        report.violation(format!(
            "after a jump {jump} retention has removed {removed} segments in {passes} passes"
        ));
    }
    report.figure(&format!("segments removed after a jump {jump}"), removed);
}

fn segments(broker: &BrokerProcess) -> f64 {
    broker.metric("longwire_segments")
}

fn first_position(broker: &BrokerProcess) -> f64 {
    broker.metric("longwire_first_position")
}
