//! A broker under producers and consumers that live through whatever is done to it.

use std::path::Path;
use std::time::Duration;

use longwire_client::{Client, Durability, NewTopic, TopicDurability};

use super::committer::{Committer, Offsets};
use super::witness::Witness;
use super::{PATIENCE, Report, start};
use crate::broker_process::{BrokerCommand, BrokerProcess};
use crate::history::{Kept, try_read_topic};
use crate::load::Load;
use crate::segment_reader::{Message, SegmentReader};
use crate::wait::try_within;

pub(super) const TOPIC: &str = "orders";
pub(super) const GROUP: &str = "billing";
pub(super) const QUEUES: u32 = 8;
pub(super) const PRODUCERS: u32 = 4;

#[derive(Debug)]
pub(super) struct Scene {
    command: BrokerCommand,
    pub(super) broker: BrokerProcess,
    pub(super) client: Client,
    witness: Witness,
    load: Load,
}

impl Scene {
    /// Starts a broker and its clients. `pace` is what each producer waits between two messages.
    pub(super) async fn start(
        command: BrokerCommand,
        at_write: bool,
        pace: Duration,
    ) -> Result<Scene, String> {
        let broker = start(&command)?;
        let client = connect(&broker).await?;
        create_topic(&client, at_write).await?;
        let witness = Witness::start(&client, TOPIC).await?;
        let load = Load::start(&client, TOPIC, PRODUCERS, acked_at(at_write), pace).await;
        Ok(Scene { command, broker, client, witness, load })
    }

    /// Waits until so many more messages have been acknowledged.
    pub(super) async fn acks(&self, count: usize, limit: Duration) -> Result<(), String> {
        let reached = self.load.reaches(self.load.acked() + count);
        try_within("acknowledgements", limit, reached).await
    }

    /// How many messages have been acknowledged.
    pub(super) fn acked(&self) -> usize {
        self.load.acked()
    }

    /// Another member of the group that commits.
    pub(super) async fn committer(&self, resume_at: Offsets) -> Result<Committer, String> {
        Committer::start(&self.client, (GROUP, TOPIC), resume_at).await
    }

    /// How the broker is started.
    pub(super) fn command(&self) -> &BrokerCommand {
        &self.command
    }

    /// Ends the load and the broker, and holds what there is against what was acknowledged; how often
    /// the witness was given a message again, and everything that is in the segments.
    pub(super) async fn finish(self, report: &mut Report) -> Result<(u64, Vec<Message>), String> {
        let history = try_within("every outcome", 2 * PATIENCE, self.load.stop()).await?;
        let log = try_read_topic(&self.client, TOPIC).await;
        let log = log.map_err(|problem| format!("{problem}\n{}", self.broker.log()))?;
        let checked = history.check(&log, Kept::All);
        let stored = checked.0.stored;
        report.count(checked);
        let testimony = self.witness.finish(&self.client).await?;
        testimony.problems.iter().for_each(|problem| report.violation(problem));
        self.broker.stop();
        // A reader that is not Longwire's finds the same log.
        let messages = messages(self.command.folder())?;
        let found = messages.iter().filter(|message| message.topic == TOPIC).count();
        if found != stored {
            report.violation(format!("{stored} were read, and {found} are in the segments"));
        }
        Ok((testimony.repeated, messages))
    }
}

/// Every message of a store that is closed, in the order of the log.
pub(super) fn messages(store: &Path) -> Result<Vec<Message>, String> {
    let messages = SegmentReader::open(store).and_then(Iterator::collect);
    messages.map_err(|fault| fault.to_string())
}

pub(super) async fn connect(broker: &BrokerProcess) -> Result<Client, String> {
    Client::connect(broker.control()).await.map_err(|error| error.to_string())
}

/// Creates the topic the load is for.
pub(super) async fn create_topic(client: &Client, at_write: bool) -> Result<(), String> {
    let durability = if at_write { TopicDurability::Write } else { TopicDurability::Flush };
    let topic = NewTopic::new(TOPIC).queues(QUEUES).durability(durability);
    client.admin().create_topic(topic).await.map(drop).map_err(|error| error.to_string())
}

pub(super) fn acked_at(at_write: bool) -> Durability {
    if at_write { Durability::Write } else { Durability::Flush }
}
