//! The store's disk runs full, in the middle of this and that, and has space again.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fastrand::Rng;
use longwire_proto::ErrorCode;
use rustix::process::Signal;

use super::committer::{Offsets, committed_offsets};
use super::scene::{GROUP, Scene, TOPIC};
use super::{Options, PATIENCE, Report, runtime, start};
use crate::broker_process::{Addresses, BrokerCommand, BrokerProcess, Refused};
use crate::frame_client::{FrameClient, fetch, record, split};
use crate::history::try_read_topic;
use crate::noise;
use crate::small_disk::{FileSystem, SmallDisk};
use crate::wait::try_within;

const SHORT_RUN: u64 = 8;
/// How soon writes are taken again once there is space.
const RESUMES_WITHIN: Duration = Duration::from_secs(5);
/// What is left for a log at first.
const LEFT_BYTES: u64 = 5 << 20;
const PAGE: [u8; 4096] = [0x5A; 4096];

/// What goes on when the disk is full.
#[derive(Debug, Clone, Copy)]
enum During {
    /// Appending: there is no room for another segment, until something else goes.
    Append,
    /// The same, and retention makes the room.
    Retention,
    /// There is not a byte for a checkpoint.
    Checkpoint,
    /// There is not a byte for a broker that was killed and recovers.
    Recovery,
}

const ALL: [During; 4] = [During::Append, During::Retention, During::Checkpoint, During::Recovery];

pub(super) fn run(options: &Options) -> Report {
    let mut report = Report::new("disk-full", options);
    let mut rng = Rng::with_seed(options.seed);
    let systems = match options.file_system.as_deref().map(FileSystem::named) {
        None => vec![FileSystem::Ext4, FileSystem::Tmpfs],
        Some(Some(system @ (FileSystem::Ext4 | FileSystem::Tmpfs))) => vec![system],
        Some(_) => {
            report.skip("xfs cannot be made this small; ext4 and tmpfs can");
            return report;
        }
    };
    let mut figures = Figures::default();
    for cycle in 0..options.count.unwrap_or(SHORT_RUN) as usize {
        let system = systems[cycle % systems.len()];
        let during = ALL[cycle / systems.len() % ALL.len()];
        let mib = if system == FileSystem::Tmpfs { 16 } else { 24 };
        let disk = match SmallDisk::make(system, mib) {
            Ok(disk) => disk,
            Err(reason) => {
                report.skip(format!("{}: {reason}", system.name()));
                break;
            }
        };
        report.cycles += 1;
        let mut cycle = Cycle { disk: &disk, options, rng: rng.fork(), figures: &mut figures };
        if let Err(problem) = runtime().block_on(cycle.run(during, &mut report)) {
            report.violation(format!("{during:?} on {}: {problem}", system.name()));
        }
    }
    report.figure("slowest_resume_ms", figures.slowest_resume.as_millis() as u64);
    report.figure("starts_on_a_full_disk", figures.started);
    report.figure("refused_starts_on_a_full_disk", figures.refused);
    report
}

#[derive(Debug, Default)]
struct Figures {
    slowest_resume: Duration,
    started: u64,
    refused: u64,
}

struct Cycle<'a> {
    disk: &'a SmallDisk,
    options: &'a Options,
    rng: Rng,
    figures: &'a mut Figures,
}

impl Cycle<'_> {
    async fn run(&mut self, during: During, report: &mut Report) -> Result<(), String> {
        let append_path = if self.rng.bool() { "pwrite" } else { "mapped" };
        let command = BrokerCommand::new(self.disk.path().join("store"))
            .on(Addresses::fixed())
            .plant(self.options.plant)
            .set("storage.segment_bytes=1MiB")
            .set(format!("storage.append_path={append_path}"))
            .set("storage.checkpoint_interval=100ms");
        match during {
            During::Append => self.append(command, report).await,
            During::Retention => self.retention(command, report),
            During::Checkpoint => self.checkpoint(command, report).await,
            During::Recovery => self.recovery(command, report).await,
        }
    }

    fn ballast(&self) -> PathBuf {
        self.disk.path().join("ballast")
    }

    /// Leaves so many bytes of the disk.
    fn leave(&self, bytes: u64) -> Result<(), String> {
        let left = || {
            let disk = rustix::fs::statvfs(self.disk.path()).map_err(|error| error.to_string())?;
            Ok::<u64, String>(disk.f_bfree * disk.f_frsize)
        };
        let file = File::options().create(true).append(true).open(self.ballast());
        let mut file = file.map_err(|error| error.to_string())?;
        // Past the last page nothing fits; what little a file system holds back is not asked for.
        while left()? > bytes && file.write_all(&PAGE).is_ok() {}
        Ok(())
    }

    fn make_room(&self) -> Result<Instant, String> {
        fs::remove_file(self.ballast()).map_err(|error| format!("the ballast: {error}"))?;
        Ok(Instant::now())
    }

    async fn resumes(&mut self, scene: &Scene, since: Instant) -> Result<(), String> {
        let resumed = scene.acks(100, RESUMES_WITHIN.saturating_sub(since.elapsed())).await;
        resumed.map_err(|problem| format!("there is space and {problem}"))?;
        self.figures.slowest_resume = self.figures.slowest_resume.max(since.elapsed());
        Ok(())
    }

    async fn append(&mut self, command: BrokerCommand, report: &mut Report) -> Result<(), String> {
        let mut scene = Scene::start(command, false, Duration::ZERO).await?;
        let committer = scene.committer(Offsets::new()).await?;
        for _ in 0..2 {
            self.leave(LEFT_BYTES)?;
            await_full(&mut scene).await?;
            // Reads go on, from the beginning to the end, and so do those of offsets.
            check_reads(&scene, report).await?;
            committed_offsets(&scene.client, GROUP).await?;
            let since = self.make_room()?;
            self.resumes(&scene, since).await?;
        }
        let commits = committer.stop().await?;
        let committed = committed_offsets(&scene.client, GROUP).await?;
        commits.problems(&committed).iter().for_each(|problem| report.violation(problem));
        scene.finish(report).await.map(drop)
    }

    async fn checkpoint(
        &mut self,
        command: BrokerCommand,
        report: &mut Report,
    ) -> Result<(), String> {
        let mut scene = Scene::start(command, false, Duration::from_millis(2)).await?;
        let committer = scene.committer(Offsets::new()).await?;
        committer.commits(2).await?;
        self.leave(0)?;
        await_full(&mut scene).await?;
        committed_offsets(&scene.client, GROUP).await?;
        let commits = committer.stop().await?;
        // Without a byte of space, a broker is told to stop, or dies.
        let signal = if self.rng.bool() { Signal::TERM } else { Signal::KILL };
        scene.broker.signal(signal);
        let ended = scene.broker.wait();
        if signal == Signal::TERM && !matches!(ended.code(), Some(0 | 74)) {
            report.violation(format!("SIGTERM ended with {ended}:\n{}", scene.broker.log()));
        }
        let since = self.make_room()?;
        self.start_again(&mut scene, since).await?;
        let committed = committed_offsets(&scene.client, GROUP).await?;
        commits.problems(&committed).iter().for_each(|problem| report.violation(problem));
        scene.finish(report).await.map(drop)
    }

    async fn recovery(
        &mut self,
        command: BrokerCommand,
        report: &mut Report,
    ) -> Result<(), String> {
        let mut scene = Scene::start(command, false, Duration::ZERO).await?;
        scene.acks(self.rng.usize(100..2_000), PATIENCE).await?;
        scene.broker.signal(Signal::KILL);
        scene.broker.wait();
        self.leave(0)?;
        let since = match scene.command().try_start() {
            Ok(broker) => {
                self.figures.started += 1;
                scene.broker = broker;
                check_reads(&scene, report).await?;
                self.make_room()?
            }
            // It may want space first, as long as it says so and leaves everything as it is.
            Err(Refused { code: Some(74), stderr }) if stderr.contains("No space left") => {
                self.figures.refused += 1;
                let since = self.make_room()?;
                scene.broker = start(scene.command())?;
                since
            }
            Err(refused) => return Err(refused.to_string()),
        };
        self.resumes(&scene, since).await?;
        scene.finish(report).await.map(drop)
    }

    async fn start_again(&mut self, scene: &mut Scene, since: Instant) -> Result<(), String> {
        scene.broker = start(scene.command())?;
        self.resumes(scene, since).await
    }

    /// Fills the disk until retention makes room, and reads what it has left.
    fn retention(&mut self, command: BrokerCommand, report: &mut Report) -> Result<(), String> {
        // However slow the disk is, it has to be filled faster than retention makes room.
        let command = command
            .set("storage.retention_bytes=2MiB")
            .set("storage.retention_check_interval=1s")
            .set("broker.default_durability=write");
        let mut broker = start(&command)?;
        self.leave(LEFT_BYTES)?;
        let mut client = FrameClient::connect(broker.addresses().data);
        let body = |offset: u64| noise(offset, 20_000);
        let (mut next, mut full_since, mut times_full) = (0, None, 0);
        let began = Instant::now();
        while times_full < 2 || full_since.is_some() {
            if began.elapsed() > PATIENCE {
                return Err(format!("it was full {times_full} times:\n{}", broker.log()));
            }
            let result = client.produce("t", 0, &record("t", 0, &body(next)));
            match ErrorCode::from_number(result.code) {
                None if result.extents.first().is_some_and(|extent| extent.offset == next) => {
                    next += 1;
                    if let Some(since) = full_since.take() {
                        let took = Instant::elapsed(&since);
                        self.figures.slowest_resume = self.figures.slowest_resume.max(took);
                    }
                }
                Some(ErrorCode::StorageFull) => {
                    if full_since.is_none() {
                        (full_since, times_full) = (Some(Instant::now()), times_full + 1);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                _ => return Err(format!("{result:?} for offset {next}")),
            }
            if full_since.is_some_and(|since| since.elapsed() > RESUMES_WITHIN) {
                return Err(format!("retention makes no room:\n{}", broker.log()));
            }
        }
        check_alive(&mut broker)?;
        report.acked += next;
        let (out_of_range, _) = client.fetch(fetch("t", &[(0, u64::MAX)], 1, PATIENCE));
        let first = out_of_range.results[0].min_offset;
        let mut at = first;
        while at < next {
            let (_, bytes) = client.fetch(fetch("t", &[(0, at)], 1 << 20, PATIENCE));
            for record in split(&bytes) {
                if record.offset() != at || record.body() != body(at) {
                    report.lost += 1;
                    report.violation(format!("another record at offset {at}"));
                }
                at += 1;
            }
        }
        broker.stop();
        Ok(())
    }
}

/// Waits until a broker under load takes nothing more, and says that the disk is full.
async fn await_full(scene: &mut Scene) -> Result<(), String> {
    let address = scene.broker.addresses().data;
    let refused = tokio::task::spawn_blocking(move || {
        let mut client = FrameClient::connect(address);
        // Larger than what may be left of a segment when the disk is full.
        let body = noise(1, 64 << 10);
        loop {
            let result = client.produce("probe", 0, &record("probe", 0, &body));
            if result.code != 0 {
                return result;
            }
        }
    });
    let refused = try_within("the disk is full", PATIENCE, refused).await?;
    let refused = refused.map_err(|error| error.to_string())?;
    check_alive(&mut scene.broker)?;
    match ErrorCode::from_number(refused.code) {
        Some(ErrorCode::StorageFull) => Ok(()),
        _ => Err(format!("a full disk is told as {refused:?}")),
    }
}

/// Everything acknowledged so far can be read.
async fn check_reads(scene: &Scene, report: &mut Report) -> Result<(), String> {
    let acked = scene.acked();
    let log = try_read_topic(&scene.client, TOPIC).await?;
    let stored: usize = log.values().map(Vec::len).sum();
    if stored < acked {
        report.violation(format!("{stored} of {acked} can be read"));
    }
    Ok(())
}

fn check_alive(broker: &mut BrokerProcess) -> Result<(), String> {
    match broker.ended() {
        None => Ok(()),
        Some(status) => Err(format!("the broker has ended with {status}:\n{}", broker.log())),
    }
}
