//! kill -9 of the broker under load, some times again while it recovers.

use std::time::Duration;

use fastrand::Rng;
use longwire_client::{Client, Durability, NewTopic, TopicDurability};

use super::committer::{Committer, Offsets, committed_offsets};
use super::witness::Witness;
use super::{Options, PATIENCE, Report, runtime, start};
use crate::broker_process::{Addresses, BrokerCommand};
use crate::history::{Kept, try_read_topic};
use crate::load::Load;
use crate::segment_reader::SegmentReader;
use crate::wait::try_within;

const SHORT_RUN: u64 = 10;
/// Kills of one store, after which the whole of it is verified.
const ROUND: u64 = 25;
const TOPIC: &str = "orders";
const GROUP: &str = "billing";
const QUEUES: u32 = 8;
const PRODUCERS: u32 = 4;
/// What a restart after kill -9 may take, where the broker is built for use.
const READY_MAX: Duration = Duration::from_secs(2);

pub(super) fn run(options: &Options) -> Report {
    let mut report = Report::new("kill", options);
    let mut rng = Rng::with_seed(options.seed);
    let cycles = options.count.unwrap_or(SHORT_RUN);
    let mut slowest = Duration::ZERO;
    while report.cycles < cycles {
        let round = Round {
            kills: ROUND.min(cycles - report.cycles),
            options,
            rng: rng.fork(),
            slowest: Duration::ZERO,
        };
        match runtime().block_on(round.run(&mut report)) {
            Ok(took) => slowest = slowest.max(took),
            Err(problem) => {
                report.violation(problem);
                break;
            }
        }
    }
    report.figure("slowest_restart_ms", slowest.as_millis() as u64);
    report
}

/// Some kills of one store, under producers and consumers that live through them.
struct Round<'a> {
    kills: u64,
    options: &'a Options,
    rng: Rng,
    slowest: Duration,
}

impl Round<'_> {
    /// The slowest restart.
    async fn run(mut self, report: &mut Report) -> Result<Duration, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let command = BrokerCommand::new(folder.path())
            .on(Addresses::fixed())
            .plant(self.options.plant)
            .set(format!("storage.segment_bytes={}MiB", self.rng.u32(1..=4)))
            .set(format!(
                "storage.append_path={}",
                self.rng.choice(["pwrite", "mapped"]).unwrap_or("pwrite")
            ))
            .set("storage.checkpoint_interval=200ms")
            .set("storage.checkpoint_bytes=1MiB");
        // A killed process takes nothing with it that is in the page cache.
        let (acked_at, durability) = match self.rng.u8(..3) {
            0 => (Durability::Write, TopicDurability::Write),
            _ => (Durability::Flush, TopicDurability::Flush),
        };
        let mut broker = start(&command)?;
        let client = Client::connect(broker.control()).await.map_err(|e| e.to_string())?;
        let topic = NewTopic::new(TOPIC).queues(QUEUES).durability(durability);
        client.admin().create_topic(topic).await.map_err(|error| error.to_string())?;
        let witness = Witness::start(&client, TOPIC).await?;
        let load = Load::start(&client, TOPIC, PRODUCERS, acked_at, Duration::ZERO).await;
        let mut committed = Offsets::new();
        for _ in 0..self.kills {
            report.cycles += 1;
            let committer = Committer::start(&client, (GROUP, TOPIC), committed.clone()).await?;
            let target = load.acked() + self.rng.usize(300..3_000);
            try_within("acknowledgements", PATIENCE, load.reaches(target)).await?;
            committer.commits(1).await?;
            tokio::time::sleep(Duration::from_micros(self.rng.u64(..5_000))).await;
            broker.kill();
            let commits = committer.stop().await?;
            if self.rng.u8(..4) == 0 {
                // Somewhere in its recovery, or right behind it.
                command.kill_after(Duration::from_millis(self.rng.u64(..40)));
            }
            broker = start(&command)?;
            self.check_start(report, broker.ready_after, &broker.log());
            committed = committed_offsets(&client, GROUP).await?;
            commits.problems(&committed).iter().for_each(|problem| report.violation(problem));
        }
        let history = load.stop().await;
        let log = try_read_topic(&client, TOPIC).await?;
        let checked = history.check(&log, Kept::All);
        let stored = checked.0.stored;
        report.count(checked);
        let testimony = witness.finish(&client).await?;
        testimony.problems.iter().for_each(|problem| report.violation(problem));
        broker.stop();
        // A reader that is not Longwire's finds the same log.
        let messages =
            SegmentReader::open(folder.path()).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let messages = messages.map_err(|fault| fault.to_string())?;
        let found = messages.iter().filter(|message| message.topic == TOPIC).count();
        if found != stored {
            report
                .violation(format!("{stored} messages were read, and {found} are in the segments"));
        }
        Ok(self.slowest)
    }

    fn check_start(&mut self, report: &mut Report, took: Duration, log: &str) {
        self.slowest = self.slowest.max(took);
        if took > READY_MAX && !cfg!(debug_assertions) {
            report.violation(format!("a restart took {took:?}"));
        }
        // What is derived from the log is not built anew for every kill.
        if log.contains("are missing") {
            report.violation(format!("the views were built again:\n{log}"));
        }
    }
}
