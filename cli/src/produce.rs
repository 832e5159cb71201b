//! `longwire produce`.

pub(crate) mod lines;

pub(crate) mod input;
pub(crate) mod send;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use longwire_client::{
    Client, Compression, Durability, ErrorCode, NewTopic, Producer, TopicDescription,
};
use serde_json::json;

use crate::Global;
use crate::connection::connect;
use crate::error::Failure;
use crate::produce::input::{Input, SplitArg};
use crate::produce::send::{Labels, Sent};
use crate::{interrupt, output, size};

/// A property that says that no newline follows the body, so that `consume` writes none.
pub(crate) const EOL_PROPERTY: &str = "LW_EOL";
/// The value of [`EOL_PROPERTY`].
pub(crate) const EOL_NONE: &str = "none";

/// Send each line of files or of standard input as a message
///
/// A line is everything up to a newline, byte for byte: a carriage return stays, any bytes are
/// allowed, an empty line is an empty message. The newline itself is not sent. Where none follows
/// (the end of a file without one, --split file, --split SIZE) the message carries the property
/// LW_EOL=none, so that 'consume' can write exactly what was read.
///
/// Without --key, --key-separator or --queue, all messages of one run go to one queue, another
/// for each run, so that they keep their order. With keys, messages of the same key keep theirs.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ProduceArgs {
    /// The topic. It is created if the broker creates topics by itself.
    topic: String,
    /// Files to read, one after another; '-' is standard input. Default: standard input.
    files: Vec<PathBuf>,
    /// What becomes one message: each line ('lines'), a whole file ('file'), or so many bytes (e.g. 64KiB).
    #[arg(long, value_name = "lines|file|SIZE", default_value = "lines")]
    split: SplitArg,
    /// Key of every message.
    #[arg(short, long, value_name = "KEY",
        value_parser = clap::builder::NonEmptyStringValueParser::new())]
    key: Option<String>,
    /// What stands before this in a line is its key, what stands behind it the body. An empty key is
    /// none.
    #[arg(short = 'K', long, value_name = "SEP", conflicts_with = "key",
        value_parser = clap::builder::NonEmptyStringValueParser::new())]
    key_separator: Option<String>,
    /// Tag of every message; consumers can filter by it.
    #[arg(short, long, value_name = "TAG", value_parser = tag)]
    tag: Option<String>,
    /// Property of every message; can be given several times.
    #[arg(short, long = "property", value_name = "NAME=VALUE", value_parser = property)]
    properties: Vec<(String, String)>,
    /// Queue of every message.
    #[arg(long, value_name = "N")]
    queue: Option<u32>,
    /// When a message counts as stored. Default: as the topic is configured.
    #[arg(long, value_enum, default_value_t = DurabilityArg::Topic, hide_default_value = true)]
    durability: DurabilityArg,
    /// Compress bodies that get smaller by it.
    #[arg(long, value_enum, default_value_t = CompressionArg::None)]
    compression: CompressionArg,
    /// Most bytes sent in one request.
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = size::bytes_not_zero)]
    batch: u64,
    /// Wait so long for more messages before a request is sent that is not full.
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = size::duration)]
    linger: Duration,
    /// Most messages a second. Default: as fast as it goes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DurabilityArg {
    /// As the topic is configured.
    Topic,
    /// Once on disk.
    Flush,
    /// Once in the broker's page cache.
    Write,
}

/// A compression on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompressionArg {
    None,
    Lz4,
    Zstd,
    Zlib,
}

impl CompressionArg {
    /// The same for the client.
    pub(crate) fn to_client(self) -> Compression {
        match self {
            CompressionArg::None => Compression::None,
            CompressionArg::Lz4 => Compression::Lz4,
            CompressionArg::Zstd => Compression::Zstd,
            CompressionArg::Zlib => Compression::Zlib,
        }
    }

    /// As it is written.
    pub(crate) fn name(self) -> &'static str {
        match self {
            CompressionArg::None => "none",
            CompressionArg::Lz4 => "lz4",
            CompressionArg::Zstd => "zstd",
            CompressionArg::Zlib => "zlib",
        }
    }
}

/// One that a filter can name, as `longwire consume --tag` and RocketMQ write them.
fn tag(text: &str) -> Result<String, String> {
    match text {
        "" => Err("an empty tag is none: leave the option out".to_owned()),
        "*" => Err("no consumer could ask for it: '*' there means every tag".to_owned()),
        _ if text.contains("||") => {
            Err("no consumer could ask for it: '||' there separates tags".to_owned())
        }
        _ if text.trim() != text => {
            Err("no consumer could ask for it: blanks around a tag do not count there".to_owned())
        }
        _ => Ok(text.to_owned()),
    }
}

fn property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("TAGS", _)) => Err("that property is the tag: give --tag".to_owned()),
        Some(("KEYS", _)) => Err("that property is the key: give --key".to_owned()),
        Some((EOL_PROPERTY, _)) => Err("'produce' sets that property itself".to_owned()),
        Some((name, value)) if !name.is_empty() && !value.is_empty() => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err("give NAME=VALUE".to_owned()),
    }
}

/// Runs the command.
pub(crate) async fn run(global: &Global, args: ProduceArgs) -> Result<(), Failure> {
    let interrupted = interrupt::token();
    let input = Input::check(&args.files, args.split)?;
    let setup = async {
        let client = connect(global).await?;
        let topic = topic_or_create(&client, &args.topic).await?;
        Ok((topic, producer(&client, &args).await?))
    };
    let (topic, producer) = interrupt::race(&interrupted, setup).await?;

    let labels = Labels {
        topic: args.topic.as_str().into(),
        key: args.key,
        key_separator: args.key_separator,
        tag: args.tag,
        properties: args.properties,
        queue: args.queue,
        keyless_queue: any_queue(topic.topic.queues),
    };
    let started = Instant::now();
    let (sent, outcome) =
        send::all(&producer, input, &labels, args.rate, global.quiet, &interrupted).await;
    let closed = tokio::select! {
        biased;
        // What was on its way has had its time.
        () = interrupted.cancelled() => Ok(()),
        closed = producer.close() => closed,
    };
    report(global, &args.topic, &sent, started.elapsed())?;
    outcome?;
    Ok(closed?)
}

async fn producer(client: &Client, args: &ProduceArgs) -> Result<Producer, Failure> {
    let durability = match args.durability {
        DurabilityArg::Topic => Durability::Topic,
        DurabilityArg::Flush => Durability::Flush,
        DurabilityArg::Write => Durability::Write,
    };
    let producer = client
        .producer()
        .durability(durability)
        .compression(args.compression.to_client())
        .compress_bytes_min(1)
        .batch_bytes_max(usize::try_from(args.batch).unwrap_or(usize::MAX))
        .linger(args.linger);
    Ok(producer.build().await?)
}

/// The topic, created with default settings where the broker would do so on the first message.
async fn topic_or_create(client: &Client, name: &str) -> Result<TopicDescription, Failure> {
    let admin = client.admin();
    match admin.describe_topic(name).await {
        Err(error) if error.code() == Some(ErrorCode::UnknownTopic) => {
            if !admin.describe_broker().await?.auto_create_topics {
                return Err(Failure::from(error));
            }
        }
        outcome => return Ok(outcome?),
    }
    match admin.create_topic(NewTopic::new(name)).await {
        Err(error) if error.code() != Some(ErrorCode::TopicExists) => Err(error.into()),
        _ => Ok(admin.describe_topic(name).await?),
    }
}

/// Any queue, another one in each run.
fn any_queue(queues: u32) -> u32 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(std::process::id());
    u32::try_from(random % u64::from(queues.max(1))).unwrap_or(0)
}

fn report(global: &Global, topic: &str, sent: &Sent, took: Duration) -> Result<(), Failure> {
    let mb_per_s = output::mb_per_s(sent.bytes, took);
    if global.json {
        return output::json(&json!({
            "topic": topic,
            "messages": sent.messages,
            "bytes": sent.bytes,
            "seconds": output::rounded(took.as_secs_f64(), 6),
            "mb_per_s": output::rounded(mb_per_s, 3),
            "level": sent.level.map(|level| level.name()),
        }));
    }
    if !global.quiet {
        let level = sent.level.map(|level| format!(", {level}")).unwrap_or_default();
        output::note(&format!(
            "{}, {} in {:.3} s, {mb_per_s:.1} MB/s{level}",
            output::count(sent.messages, "message"),
            output::bytes(sent.bytes),
            took.as_secs_f64(),
        ));
    }
    Ok(())
}
