//! `longwire group`.

use std::collections::HashMap;

use clap::{Args, Subcommand};
use longwire_client::{Error, ErrorCode, GroupDescription, QueueOffset};
use serde_json::{Value, json};

use crate::Global;
use crate::confirm::confirm;
use crate::connection::connect;
use crate::error::Failure;
use crate::output;
use crate::point::{POINT_FORMS, Point};

/// `longwire group ...`
#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// List the groups.
    List,
    /// Show a group's members, and how far it is in each queue.
    Describe {
        /// The group.
        name: String,
    },
    /// Delete a group with its committed offsets. It must have no members.
    Delete {
        /// The group.
        name: String,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
    /// Move a group to another point in a topic. It must have no members.
    Reset(ResetArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ResetArgs {
    /// The group.
    name: String,
    /// The topic in which it is moved.
    #[arg(long)]
    topic: String,
    /// Only this queue; can be given several times. Default: all.
    #[arg(long = "queue", value_name = "N")]
    queues: Vec<u32>,
    #[arg(long, value_name = "POINT", allow_hyphen_values = true, help = format!("Where to: {POINT_FORMS}"))]
    to: Point,
    /// Only show what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
}

/// Runs the command.
pub(crate) async fn run(global: &Global, command: GroupCommand) -> Result<(), Failure> {
    match command {
        GroupCommand::List => list(global).await,
        GroupCommand::Describe { name } => describe(global, &name).await,
        GroupCommand::Delete { name, yes } => delete(global, &name, yes).await,
        GroupCommand::Reset(args) => reset(global, args).await,
    }
}

async fn list(global: &Global) -> Result<(), Failure> {
    let groups = connect(global).await?.admin().list_groups().await?;
    if global.json {
        let groups = groups.iter().map(|g| json!({"name": g.name, "members": g.members}));
        return output::json(&groups.collect::<Vec<_>>());
    }
    if groups.is_empty() {
        if !global.quiet {
            output::note("no groups yet; 'longwire consume TOPIC --group NAME' makes one");
        }
        return Ok(());
    }
    let rows = groups.iter().map(|g| [g.name.clone(), g.members.to_string()]);
    output::line(&output::table(&["GROUP", "MEMBERS"], &[1], rows))
}

async fn describe(global: &Global, name: &str) -> Result<(), Failure> {
    let group = connect(global).await?.admin().describe_group(name).await?;
    if global.json {
        return output::json(&to_json(&group));
    }
    let lag: u64 = group.queues.iter().map(|q| q.lag).sum();
    let mut text = format!(
        "{}: {}, generation {}, lag {}",
        group.name,
        output::count(group.members.len() as u64, "member"),
        group.generation,
        output::grouped(lag)
    );
    if !group.members.is_empty() {
        let rows = group
            .members
            .iter()
            .map(|m| [m.member_id.clone(), m.client_id.clone(), m.assigned.len().to_string()]);
        text += "\n\n";
        text += &output::table(&["MEMBER", "CLIENT", "QUEUES"], &[2], rows);
    }
    if !group.queues.is_empty() {
        text += "\n\n";
        text += &lag_table(&group);
    }
    output::line(&text)
}

fn lag_table(group: &GroupDescription) -> String {
    let rows = group.queues.iter().map(|q| {
        vec![
            q.topic.clone(),
            q.queue.to_string(),
            q.committed.map_or("-".to_owned(), |offset| offset.to_string()),
            q.max_offset.to_string(),
            q.lag.to_string(),
            q.member_id.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    let header = ["TOPIC", "QUEUE", "COMMITTED", "NEXT OFFSET", "LAG", "MEMBER"];
    output::table(&header, &[1, 2, 3, 4], rows)
}

async fn delete(global: &Global, name: &str, yes: bool) -> Result<(), Failure> {
    let admin = connect(global).await?.admin();
    admin.describe_group(name).await?;
    confirm(yes, &format!("deleting group {name:?} with its committed offsets"))?;
    admin.delete_group(name).await?;
    if global.json {
        return output::json(&json!({"deleted": name}));
    }
    if !global.quiet {
        output::note(&format!("group {name} deleted"));
    }
    Ok(())
}

async fn reset(global: &Global, args: ResetArgs) -> Result<(), Failure> {
    let admin = connect(global).await?.admin();
    let before = admin.committed(&args.name).await?;
    let before: HashMap<_, _> = before.iter().map(|o| ((&*o.topic, o.queue), o.offset)).collect();
    let committed = |o: &QueueOffset| before.get(&(&*o.topic, o.queue)).copied();
    let (topic, queues, point) = (&args.topic, &args.queues, args.to.to_client());
    let reset = async |dry_run| {
        let reset = admin.reset_offsets(&args.name, topic, queues, point, dry_run).await;
        reset.map_err(|error| cannot_reset(error, queues))
    };
    let planned = reset(true).await?;
    let after = if args.dry_run {
        planned
    } else {
        let count = output::count(planned.len() as u64, "queue");
        let what = format!("moving group {:?} in {count}", args.name);
        confirm(args.yes, &what)?;
        reset(false).await?
    };
    if global.json {
        let moved = |o: &QueueOffset| json!({"topic": &*o.topic, "queue": o.queue, "from": committed(o), "to": o.offset});
        let moves: Vec<_> = after.iter().map(moved).collect();
        return output::json(
            &json!({"group": args.name, "dry_run": args.dry_run, "queues": moves}),
        );
    }
    let rows = after.iter().map(|o| {
        let from = committed(o).map_or("-".to_owned(), |offset| offset.to_string());
        vec![o.topic.to_string(), o.queue.to_string(), from, o.offset.to_string()]
    });
    let to = if args.dry_run { "WOULD BE" } else { "NOW" };
    output::line(&output::table(&["TOPIC", "QUEUE", "COMMITTED", to], &[1, 2, 3], rows))
}

/// An offset that a single queue does not have keeps all of them where they are.
fn cannot_reset(error: Error, queues: &[u32]) -> Failure {
    match error.code() == Some(ErrorCode::OffsetOutOfRange) && queues.len() != 1 {
        true => Failure::from(error).and("no queue was moved; --queue N moves one alone"),
        false => Failure::from(error),
    }
}

fn to_json(group: &GroupDescription) -> Value {
    let members = group.members.iter().map(|m| {
        let assigned = m.assigned.iter().map(|q| json!({"topic": &*q.topic, "queue": q.queue}));
        json!({
            "member_id": m.member_id,
            "client_id": m.client_id,
            "assigned": assigned.collect::<Vec<_>>(),
        })
    });
    let queues = group.queues.iter().map(|q| {
        json!({
            "topic": q.topic,
            "queue": q.queue,
            "committed": q.committed,
            "min_offset": q.min_offset,
            "max_offset": q.max_offset,
            "lag": q.lag,
            "member_id": q.member_id,
        })
    });
    json!({
        "name": group.name,
        "generation": group.generation,
        "members": members.collect::<Vec<_>>(),
        "queues": queues.collect::<Vec<_>>(),
    })
}
