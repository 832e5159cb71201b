//! `longwire consume`.

pub(crate) mod format;
mod member;
mod merge;
mod ordered;
mod sink;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use longwire_client::{Error, ErrorKind, RecordRef};
use tokio_util::sync::CancellationToken;

use crate::Global;
use crate::connection::connect;
use crate::consume::format::{FIELD_NAMES, Field, Format};
use crate::consume::sink::Sink;
use crate::error::{Exit, Failure};
use crate::point::{POINT_FORMS, Point};
use crate::{interrupt, size};

/// Write messages to standard output, byte for byte as they were produced
///
/// Without --group: reads from the beginning (--from) to the end as it is when the command starts,
/// or goes on with --follow. Messages of all queues come in the order in which the broker stored
/// them, so that 'longwire produce t < a; longwire consume t > b' makes b the same as a. What is
/// stored while --follow goes on comes as it arrives; queues that are added are found within ten
/// seconds. An offset for --from has to be one that some queue has come to.
///
/// With --group: shares the topic with the other members of the group, begins where the group has
/// committed (--from counts where it has not), and goes on until it is stopped, by --max,
/// by --timeout, or by Ctrl-C. What was written, what --tag leaves out and where it begins, if not
/// at the earliest message, are committed within a second or two, and at the end.
///
/// A topic that is deleted, also one that is made again, ends either with an error.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ConsumeArgs {
    /// The topic.
    topic: String,
    #[arg(long, value_name = "POINT", default_value = "earliest", allow_hyphen_values = true,
        help = format!("Where to begin: {POINT_FORMS}"))]
    from: Point,
    /// Consume as a member of this group.
    #[arg(short, long, value_name = "GROUP")]
    group: Option<String>,
    /// Only this queue; can be given several times. Default: all.
    #[arg(long = "queue", value_name = "N", conflicts_with = "group")]
    queues: Vec<u32>,
    /// Only messages with one of these tags, e.g. 'paid || shipped'.
    #[arg(short, long, value_name = "TAGS")]
    tag: Option<String>,
    /// At the end, wait for more. A member of a group always does.
    #[arg(short, long)]
    follow: bool,
    /// Stop after so many messages.
    #[arg(short, long, value_name = "N")]
    max: Option<u64>,
    /// Stop when no message has come for so long; until then a broker that is lost is waited for.
    /// Exit code 5 if --max, or without --group and --follow the end, was not reached by then.
    #[arg(long, value_name = "TIME", value_parser = size::duration)]
    timeout: Option<Duration>,
    /// How a message is written: 'lines' (body and newline, exactly as it was read), 'raw' (bodies
    /// alone), 'json' (one object a line), 'hex', or a text such as '{key}\t{body}\n'.
    /// Default: lines, with --json json.
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    #[arg(long, value_name = "FIELD,...", value_delimiter = ',', conflicts_with = "format",
        help = format!("Write these fields, separated by tabs, one message a line: {FIELD_NAMES}"))]
    print: Vec<Field>,
    /// Write each body to a file of its own in this folder, named TOPIC-QUEUE-OFFSET.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["format", "print"])]
    output_dir: Option<PathBuf>,
}

/// Why a consumer stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Everything that was asked for has been written.
    Complete,
    /// No message came for as long as `--timeout` allows.
    Idle,
    /// Ctrl-C.
    Interrupted,
    /// Nobody reads the output any more.
    Abandoned,
}

/// When to stop, beside the end of the topic.
#[derive(Debug)]
struct Limits {
    max: Option<u64>,
    idle: Option<Duration>,
    interrupted: CancellationToken,
}

/// The tags of `--tag`; none at all for all messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tags(Vec<String>);

impl Tags {
    fn parse(expression: Option<&str>) -> Tags {
        let all = expression.unwrap_or("*").split("||").map(str::trim);
        let tags: Vec<_> = all.filter(|tag| !tag.is_empty()).map(str::to_owned).collect();
        if tags.iter().any(|tag| tag == "*") { Tags::default() } else { Tags(tags) }
    }

    fn allow(&self, tag: Option<&str>) -> bool {
        self.0.is_empty() || self.0.iter().any(|wanted| Some(wanted.as_str()) == tag)
    }
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: ConsumeArgs) -> Result<(), Failure> {
    let interrupted = interrupt::token();
    let limits = Limits { max: args.max, idle: args.timeout, interrupted };
    let tags = Tags::parse(args.tag.as_deref());
    let mut sink = sink(global, &args)?;
    let client = interrupt::race(&limits.interrupted, connect(global)).await?;
    let (end, written) = match &args.group {
        Some(group) => {
            let member = member::Membership { group, topic: &args.topic, from: args.from, tags };
            member.consume(&client, &limits, &mut sink).await?
        }
        None => {
            let wanted = ordered::Wanted {
                topic: &args.topic,
                queues: &args.queues,
                from: args.from,
                follow: args.follow,
                tags,
                quiet: global.quiet,
            };
            wanted.consume(&client, &limits, &mut sink).await?
        }
    };
    match (end, args.max) {
        (End::Interrupted, _) => Err(Failure::interrupted()),
        (End::Abandoned, _) => Err(Failure::reported(Exit::BrokenPipe)),
        (End::Idle, Some(max)) if written < max => {
            let message = format!("no message came in time; {written} of {max} written");
            Err(Failure::new(Exit::TimedOut, message))
        }
        (End::Idle, None) if args.group.is_none() && !args.follow => {
            let message = format!("no message came in time; {written} written, not all there are");
            Err(Failure::new(Exit::TimedOut, message))
        }
        _ => Ok(()),
    }
}

/// Why a consumer ended; with what to do, given a queue and an offset, about a bad record before that.
/// It would end every later start as well.
fn cannot_read(error: Error, way_on: impl FnOnce(u32, u64) -> String) -> Failure {
    let bad = error.record().filter(|_| error.kind() == ErrorKind::CorruptRecord).cloned();
    let failure = Failure::from(error);
    match bad {
        Some(RecordRef { queue, offset, .. }) => failure.and(&way_on(queue.queue, offset + 1)),
        None => failure,
    }
}

fn sink(global: &Global, args: &ConsumeArgs) -> Result<Sink, Failure> {
    let format = match (&args.format, args.print.as_slice()) {
        (Some(format), _) => Some(format.clone()),
        (None, []) => None,
        (None, fields) => Some(Format::columns(fields)),
    };
    // --json is an option of every command, and may stand before this one's name, where clap does not
    // see what it conflicts with.
    if global.json
        && (args.output_dir.is_some() || format.as_ref().is_some_and(|f| *f != Format::Json))
    {
        return Err(Failure::usage(
            "--json says how messages are written, as --format, --print and --output-dir do: \
             give one of them",
        ));
    }
    if let Some(folder) = &args.output_dir {
        return Sink::folder(folder.clone());
    }
    let default = if global.json { Format::Json } else { Format::Lines };
    Ok(Sink::stdout(format.unwrap_or(default)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_expressions_are_alternatives() {
        let tags = Tags::parse(Some("paid || shipped"));
        assert!(tags.allow(Some("paid")) && tags.allow(Some("shipped")));
        assert!(!tags.allow(Some("lost")) && !tags.allow(None));
        for all in [None, Some("*"), Some(""), Some("a || *")] {
            assert!(Tags::parse(all).allow(None), "{all:?}");
        }
    }
}
