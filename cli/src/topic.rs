//! `longwire topic`.

use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use longwire_client::{ErrorCode, NewTopic, Topic, TopicDescription, TopicDurability, TopicUpdate};
use serde_json::{Value, json};

use crate::Global;
use crate::confirm::confirm;
use crate::connection::connect;
use crate::error::Failure;
use crate::{output, size};

/// `longwire topic ...`
#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Create a topic.
    Create(CreateArgs),
    /// List the topics.
    List {
        /// Also those Longwire keeps for itself.
        #[arg(long)]
        system: bool,
    },
    /// Show a topic's settings and the readable range of each queue.
    Describe {
        /// The topic.
        name: String,
    },
    /// Change a topic's settings. Queues can be added, never taken away.
    Update(UpdateArgs),
    /// Delete a topic with all of its messages.
    Delete {
        /// The topic.
        name: String,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The topic: 1 to 127 of the characters A-Z a-z 0-9 _ - % |
    name: String,
    /// Number of queues. Default: as the broker is configured.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    queues: Option<u32>,
    #[command(flatten)]
    settings: Settings,
    /// Do nothing, successfully, if there is such a topic.
    #[arg(long)]
    if_not_exists: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true)
    .args(["queues", "durability", "retention", "retention_bytes"]))]
pub(crate) struct UpdateArgs {
    /// The topic.
    name: String,
    /// Number of queues. Adding some moves keys to other queues.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    queues: Option<u32>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Args)]
struct Settings {
    /// When messages are acknowledged and can be consumed.
    #[arg(long, value_enum)]
    durability: Option<DurabilityArg>,
    /// How long messages are kept, e.g. 7d. 0s: as the broker is configured.
    #[arg(long, value_name = "TIME", value_parser = size::duration)]
    retention: Option<Duration>,
    /// How many bytes of messages are kept, e.g. 10GiB. 0: as the broker is configured.
    #[arg(long, value_name = "SIZE", value_parser = size::bytes)]
    retention_bytes: Option<u64>,
}

/// A topic's durability on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DurabilityArg {
    /// Once on disk: survives a power cut.
    Flush,
    /// Once in the broker's page cache: faster; survives the broker's death, not the machine's.
    Write,
}

impl DurabilityArg {
    /// The same for the client.
    pub(crate) fn to_client(self) -> TopicDurability {
        match self {
            DurabilityArg::Flush => TopicDurability::Flush,
            DurabilityArg::Write => TopicDurability::Write,
        }
    }
}

/// Runs the command.
pub(crate) async fn run(global: &Global, command: TopicCommand) -> Result<(), Failure> {
    match command {
        TopicCommand::Create(args) => create(global, args).await,
        TopicCommand::List { system } => list(global, system).await,
        TopicCommand::Describe { name } => describe(global, &name).await,
        TopicCommand::Update(args) => update(global, args).await,
        TopicCommand::Delete { name, yes } => delete(global, &name, yes).await,
    }
}

async fn create(global: &Global, args: CreateArgs) -> Result<(), Failure> {
    let mut new = NewTopic::new(&args.name);
    if let Some(queues) = args.queues {
        new = new.queues(queues);
    }
    if let Some(durability) = args.settings.durability {
        new = new.durability(durability.to_client());
    }
    if let Some(retention) = args.settings.retention {
        new = new.retention_ms(whole_ms(retention));
    }
    if let Some(retention_bytes) = args.settings.retention_bytes {
        new = new.retention_bytes(retention_bytes);
    }
    let admin = connect(global).await?.admin();
    let (topic, created) = match admin.create_topic(new).await {
        Ok(topic) => (topic, true),
        Err(error) if args.if_not_exists && error.code() == Some(ErrorCode::TopicExists) => {
            (admin.describe_topic(&args.name).await?.topic, false)
        }
        Err(error) => return Err(error.into()),
    };
    report(global, &topic, if created { "created" } else { "exists already" })
}

async fn list(global: &Global, system: bool) -> Result<(), Failure> {
    let topics = connect(global).await?.admin().list_topics(system).await?;
    if global.json {
        return output::json(&topics.iter().map(to_json).collect::<Vec<_>>());
    }
    if topics.is_empty() {
        if !global.quiet {
            output::note("no topics yet; 'longwire topic create NAME' makes one");
        }
        return Ok(());
    }
    let rows = topics.iter().map(|topic| {
        vec![
            topic.name.clone(),
            topic.queues.to_string(),
            topic.durability.name().to_owned(),
            retention(topic),
            output::time(topic.created_ms),
        ]
    });
    let header = ["TOPIC", "QUEUES", "DURABILITY", "RETENTION", "CREATED"];
    output::line(&output::table(&header, &[1], rows))
}

async fn describe(global: &Global, name: &str) -> Result<(), Failure> {
    let description = connect(global).await?.admin().describe_topic(name).await?;
    let TopicDescription { topic, queues, .. } = &description;
    if global.json {
        let mut value = to_json(topic);
        value["ranges"] = queues
            .iter()
            .map(|q| json!({"queue": q.queue, "min_offset": q.min_offset, "max_offset": q.max_offset}))
            .collect();
        return output::json(&value);
    }
    let rows = queues.iter().map(|q| {
        let messages = q.max_offset.saturating_sub(q.min_offset);
        [u64::from(q.queue), q.min_offset, q.max_offset, messages].map(|n| n.to_string())
    });
    let header = ["QUEUE", "FIRST OFFSET", "NEXT OFFSET", "MESSAGES"];
    let table = output::table(&header, &[0, 1, 2, 3], rows);
    output::line(&format!("{}\n\n{table}", summary(topic)))
}

async fn update(global: &Global, args: UpdateArgs) -> Result<(), Failure> {
    let UpdateArgs { name, queues, settings } = args;
    let mut update = TopicUpdate::new();
    if let Some(queues) = queues {
        update = update.queues(queues);
    }
    if let Some(durability) = settings.durability {
        update = update.durability(durability.to_client());
    }
    if let Some(retention) = settings.retention {
        update = update.retention_ms(whole_ms(retention));
    }
    if let Some(retention_bytes) = settings.retention_bytes {
        update = update.retention_bytes(retention_bytes);
    }
    let topic = connect(global).await?.admin().update_topic(&name, update).await?;
    report(global, &topic, "is now")
}

async fn delete(global: &Global, name: &str, yes: bool) -> Result<(), Failure> {
    let admin = connect(global).await?.admin();
    // A name that does not exist is told before anything is asked.
    admin.describe_topic(name).await?;
    confirm(yes, &format!("deleting topic {name:?} with all of its messages"))?;
    admin.delete_topic(name).await?;
    if global.json {
        return output::json(&json!({"deleted": name}));
    }
    if !global.quiet {
        output::note(&format!("topic {name} deleted"));
    }
    Ok(())
}

fn report(global: &Global, topic: &Topic, outcome: &str) -> Result<(), Failure> {
    if global.json {
        return output::json(&to_json(topic));
    }
    if !global.quiet {
        let settings = summary(topic);
        let settings = settings.strip_prefix(&topic.name).unwrap_or(&settings);
        output::note(&format!("topic {} {outcome}{settings}", topic.name));
    }
    Ok(())
}

fn summary(topic: &Topic) -> String {
    format!(
        "{}: {}, durability {}, retention {}",
        topic.name,
        output::count(topic.queues.into(), "queue"),
        topic.durability.name(),
        retention(topic)
    )
}

fn retention(topic: &Topic) -> String {
    let age = Duration::from_millis(topic.retention_ms);
    match (topic.retention_ms, topic.retention_bytes) {
        (0, 0) => "as the broker's".to_owned(),
        (_, 0) => humantime::format_duration(age).to_string(),
        (0, bytes) => output::bytes(bytes),
        (_, bytes) => format!("{} or {}", humantime::format_duration(age), output::bytes(bytes)),
    }
}

fn to_json(topic: &Topic) -> Value {
    json!({
        "name": topic.name,
        "queues": topic.queues,
        "durability": topic.durability.name(),
        "retention_ms": topic.retention_ms,
        "retention_bytes": topic.retention_bytes,
        "created_ms": topic.created_ms,
    })
}

/// Zero stands for the broker's own setting, so less than a millisecond must not become it.
fn whole_ms(time: Duration) -> u64 {
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if time.is_zero() { 0 } else { ms.max(1) }
}
