//! The power of the store's file system is cut under load, and the broker killed.
//!
//! The cut comes first: an acknowledgement after it would be one of data the disk cannot have.

use std::collections::HashMap;
use std::time::Duration;

use fastrand::Rng;
use longwire_client::Client;
use rustix::process::Signal;

use super::committer::{Commits, Committer, Offsets, committed_offsets};
use super::scene::{GROUP, PRODUCERS, QUEUES, TOPIC, acked_at, connect, create_topic, messages};
use super::torn_pages::{Written, persist_some};
use super::{Options, PATIENCE, Report, runtime, start};
use crate::broker_process::{BrokerCommand, BrokerProcess};
use crate::history::{History, Kept, try_read_topic};
use crate::load::Load;
use crate::power;
use crate::small_disk::{FileSystem, SmallDisk};
use crate::wait::try_within;

const SHORT_RUN: u64 = 10;
/// Cuts of one store. Everything is verified after each, so the store must not grow long.
const ROUND: u64 = 10;
/// The least xfs can be made with is 300.
const DISK_MIB: u64 = 320;

pub(super) fn run(options: &Options) -> Report {
    let mut report = Report::new("power-cut", options);
    let mut rng = Rng::with_seed(options.seed);
    let cycles = options.count.unwrap_or(SHORT_RUN);
    let mut figures = Figures::default();
    let named = options.file_system.as_deref().map(FileSystem::named);
    let mut systems = match named {
        None => vec![FileSystem::Ext4, FileSystem::Xfs],
        Some(Some(system @ (FileSystem::Ext4 | FileSystem::Xfs))) => vec![system],
        Some(_) => {
            report.skip("only ext4 and xfs can have their power cut");
            return report;
        }
    };
    systems.retain(|system| match SmallDisk::make(*system, DISK_MIB) {
        Ok(_) => true,
        Err(reason) => {
            report.skip(format!("{}: {reason}", system.name()));
            false
        }
    });
    for round in 0.. {
        let Some(system) = systems.get(round % systems.len().max(1)) else { break };
        if report.cycles >= cycles {
            break;
        }
        let cuts = ROUND.min(cycles - report.cycles);
        let outcome = Round::new(*system, options, rng.fork())
            .and_then(|mut round| round.run(cuts, &mut report, &mut figures));
        if let Err(problem) = outcome {
            report.violation(format!("on {}: {problem}", system.name()));
            break;
        }
    }
    figures.into_report(&mut report, options.torn);
    report
}

#[derive(Debug, Default)]
struct Figures {
    slowest_restart: Duration,
    cut_off: u64,
    pages_lost: u64,
    torn_images: u64,
    seen_images: u64,
}

impl Figures {
    fn into_report(self, report: &mut Report, torn: bool) {
        report.figure("slowest_restart_ms", self.slowest_restart.as_millis() as u64);
        report.figure("cut_off_at_write", self.cut_off);
        if torn {
            report.figure("pages_lost", self.pages_lost);
            // A page lost, and one behind it kept.
            report.figure("torn_images", self.torn_images);
            report.figure("images_compared", self.seen_images);
        }
    }
}

/// Some cuts of one store.
struct Round<'a> {
    disk: SmallDisk,
    command: BrokerCommand,
    options: &'a Options,
    rng: Rng,
    /// Whether the topic is at `write`, where a cut may take the log's end.
    at_write: bool,
    history: History,
    committed: Offsets,
    acked_before: u64,
}

/// What went on when the power was cut.
struct Interrupted {
    history: History,
    commits: Option<Commits>,
}

impl<'a> Round<'a> {
    fn new(system: FileSystem, options: &'a Options, mut rng: Rng) -> Result<Round<'a>, String> {
        let disk = SmallDisk::make(system, DISK_MIB)?;
        let append_path = if rng.bool() { "pwrite" } else { "mapped" };
        let at_write = rng.u8(..5) < 2;
        let command = BrokerCommand::new(disk.path().join("store"))
            .plant(options.plant)
            .set("storage.segment_bytes=4MiB")
            .set(format!("storage.append_path={append_path}"))
            .set(format!("storage.flush_interval={}ms", rng.u32(20..500)))
            .set("storage.checkpoint_interval=100ms")
            .set("storage.checkpoint_bytes=1MiB");
        Ok(Round {
            disk,
            command,
            options,
            rng,
            at_write,
            history: History::default(),
            committed: Offsets::new(),
            acked_before: 0,
        })
    }

    fn run(&mut self, cuts: u64, report: &mut Report, figures: &mut Figures) -> Result<(), String> {
        let mut broker = start(&self.command)?;
        runtime()
            .block_on(async { create_topic(&connect(&broker).await?, self.at_write).await })?;
        for cut in 0..cuts {
            report.cycles += 1;
            // Its clients end with it. One that went on could dial a port that a later broker has, and
            // send it what an earlier one has not taken.
            let clients = runtime();
            let interrupted = clients.block_on(self.interrupt(broker, cut, figures));
            clients.shutdown_background();
            broker = start(&self.command)?;
            figures.slowest_restart = figures.slowest_restart.max(broker.ready_after);
            let verified = runtime().block_on(async {
                self.verify(&connect(&broker).await?, interrupted?, report, figures).await
            });
            if !verified.map_err(|problem| format!("{problem}\n{}", broker.log()))? {
                self.explain(broker);
                return Ok(()); // What follows would only be about the same.
            }
        }
        Ok(())
    }

    /// Says what the log itself has, which the views may or may not follow.
    fn explain(&self, broker: BrokerProcess) {
        let (settings, log) = (&self.command, broker.log());
        broker.stop();
        let mut places = HashMap::<_, Vec<u64>>::new();
        let messages = messages(self.command.folder()).unwrap_or_else(|fault| {
            eprintln!("{fault}");
            Vec::new()
        });
        for message in messages.iter().filter(|message| message.topic == TOPIC) {
            places.entry((message.queue, message.offset)).or_default().push(message.position);
        }
        let ends = (0..QUEUES).map(|queue| places.keys().filter(|at| at.0 == queue).count());
        let ends: Vec<usize> = ends.collect();
        let mut twice: Vec<_> = places.iter().filter(|(_, at)| at.len() > 1).collect();
        twice.sort();
        twice.truncate(5);
        let at_write = self.at_write;
        eprintln!(
            "{settings:?}\nat write: {at_write}; messages in the segments, by queue: {ends:?}; \
             places that are there twice, and where: {twice:?}\n{log}"
        );
    }

    /// Puts the broker under load, cuts the power, and leaves the disk as the next start will find it.
    async fn interrupt(
        &mut self,
        broker: BrokerProcess,
        cut: u64,
        figures: &mut Figures,
    ) -> Result<Interrupted, String> {
        let client = connect(&broker).await?;
        let acked_at = acked_at(self.at_write);
        let first = cut as u32 * PRODUCERS;
        let producers = first..first + PRODUCERS;
        // Every commit flushes the log: at `write` there is more to lose without.
        let commits = !self.at_write || self.rng.bool();
        let committer = match commits {
            true => {
                let group = (GROUP, TOPIC);
                Some(Committer::start(&client, group, self.committed.clone()).await?)
            }
            false => None,
        };
        let load = Load::start_as(&client, TOPIC, producers, acked_at, Duration::ZERO).await;
        let target = self.rng.usize(50..1_200);
        try_within("acknowledgements", PATIENCE, load.reaches(target)).await?;
        if let Some(committer) = &committer {
            committer.commits(1).await?;
        }
        tokio::time::sleep(Duration::from_micros(self.rng.u64(..3_000))).await;
        self.cut_power(broker, figures)?;
        // Acknowledgements that were under way have arrived meanwhile.
        let history = load.abandon().await;
        let commits = match committer {
            Some(committer) => Some(committer.stop().await?),
            None => None,
        };
        Ok(Interrupted { history, commits })
    }

    fn cut_power(&mut self, broker: BrokerProcess, figures: &mut Figures) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("cutting the power: {error}");
        let (folder, mut written) = (self.disk.path(), None);
        if self.options.torn {
            // Half of the time in the middle of whatever it does, so that much is not synced yet.
            let stops = self.rng.bool();
            if stops {
                broker.signal(Signal::STOP);
                written = Some(Written::read(&folder.join("store/commitlog")).map_err(failed)?);
            }
            persist_some(&folder.join("store"), &mut self.rng).map_err(failed)?;
        }
        power::cut(&folder).map_err(failed)?;
        broker.kill();
        self.disk.remount()?;
        if let Some(written) = written {
            let survival = written.survival().map_err(failed)?;
            figures.seen_images += 1;
            figures.pages_lost += survival.lost;
            figures.torn_images += u64::from(survival.kept_behind > 0);
        }
        Ok(())
    }

    /// Holds what there is against what was acknowledged, confirmed and shown.
    async fn verify(
        &mut self,
        client: &Client,
        interrupted: Interrupted,
        report: &mut Report,
        figures: &mut Figures,
    ) -> Result<bool, String> {
        let Interrupted { history, commits } = interrupted;
        self.history.extend(history);
        let log =
            try_within("reading everything", PATIENCE, try_read_topic(client, TOPIC)).await??;
        let kept = if self.at_write { Kept::AllButAnEnd } else { Kept::All };
        let (verified, problems) = self.history.check(&log, kept);
        let before = report.violations;
        figures.cut_off += verified.cut_off as u64;
        // Of the cuts before, most are verified again.
        let acked = verified.acked as u64;
        report.acked += acked - self.acked_before.min(acked);
        report.count_problems(&problems);
        self.history.give_up_what_is_cut_off(&log);
        self.acked_before = self.history.acked() as u64;
        self.committed = committed_offsets(client, GROUP).await?;
        if let Some(commits) = commits {
            if !self.at_write {
                commits.taken_back(&log).iter().for_each(|problem| report.violation(problem));
            }
            commits.problems(&self.committed).iter().for_each(|problem| report.violation(problem));
        }
        for (queue, offset) in &self.committed {
            let end = log.get(queue).map_or(0, Vec::len) as u64;
            if *offset > end {
                report.violation(format!(
                    "{offset} is committed in queue {queue}, which ends at {end}"
                ));
            }
        }
        Ok(report.violations == before)
    }
}
