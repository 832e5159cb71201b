//! What a run tells at the end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::LoadArgs;
use super::rate::Rate;
use super::record::Record;
use super::target::Target;
use super::timeline::Rates;
use crate::error::Failure;
use crate::output::{self, count, grouped, rounded};

/// The quantiles of every table, as JSON and people call them.
const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];

/// Everything that was asked for and seen: `--json` prints it as it is.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) mode: &'static str,
    pub(super) topic: String,
    pub(super) queues: u32,
    /// When messages are acknowledged, as asked for.
    pub(super) durability: &'static str,
    /// The lowest level that an acknowledged message has really reached.
    pub(super) level: Option<&'static str>,
    pub(super) clients: u32,
    /// How the messages were made; nothing where the topic was there already.
    pub(super) load: Option<LoadFacts>,
    pub(super) warmup_seconds: f64,
    /// From the end of the warm-up to the last message that was measured.
    pub(super) seconds: f64,
    /// Ended early, by Ctrl-C.
    pub(super) interrupted: bool,
    pub(super) messages: u64,
    /// Of bodies.
    pub(super) bytes: u64,
    pub(super) messages_per_s: f64,
    /// 10^6 bytes of bodies a second.
    pub(super) mb_per_s: f64,
    /// What `latency_us` is the time of.
    pub(super) latency_of: String,
    pub(super) latency_us: Percentiles,
    /// From the intended send time to the acknowledgement, where `latency_us` is of something else.
    pub(super) ack_us: Option<Percentiles>,
    /// How much later than intended messages were handed to the client library.
    pub(super) send_delay_us: Option<Percentiles>,
    /// By error code, or by kind where the broker gave none.
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) integrity: Option<Integrity>,
    /// CPU time of this process: all clients, and the measuring.
    pub(super) client_cpu_seconds: Option<f64>,
    pub(super) timeline: Rates,
}

/// How messages were made and sent.
#[derive(Debug, Serialize)]
pub(super) struct LoadFacts {
    pub(super) size: String,
    pub(super) keys: Option<u32>,
    pub(super) compression: &'static str,
    pub(super) batch_bytes: u64,
    pub(super) linger_seconds: f64,
    /// `open`: sent by a schedule. `closed`: sent when there is room for another one.
    #[serde(rename = "loop")]
    pub(super) kind: &'static str,
    /// Messages a second, of all clients together.
    pub(super) rate: Option<f64>,
    /// Of each client, in a closed loop.
    pub(super) in_flight: Option<u32>,
}

/// Whether everything arrived, over the whole run.
#[derive(Debug, Serialize)]
pub(super) struct Integrity {
    /// Nothing is wrong.
    pub(super) verified: bool,
    pub(super) acknowledged: u64,
    /// Different messages.
    pub(super) received: u64,
    /// Acknowledged, and not received.
    pub(super) lost: u64,
    pub(super) duplicated: u64,
    pub(super) out_of_order: u64,
}

/// Of times in microseconds. Without any all are 0.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Percentiles {
    pub(super) count: u64,
    pub(super) mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    p9999: f64,
    pub(super) max: f64,
}

impl Percentiles {
    pub(super) fn of(times: &Histogram<u64>) -> Percentiles {
        let us = |ns: u64| rounded(ns as f64 / 1e3, 1);
        let [p50, p90, p99, p999, p9999] =
            QUANTILES.map(|(_, quantile)| us(times.value_at_quantile(quantile)));
        let mean = rounded(times.mean() / 1e3, 1);
        Percentiles { count: times.len(), mean, p50, p90, p99, p999, p9999, max: us(times.max()) }
    }

    /// Names and figures, in the order of the tables.
    pub(super) fn columns(&self) -> [(&'static str, f64); 6] {
        let Percentiles { p50, p90, p99, p999, p9999, max, .. } = *self;
        let figures = [p50, p90, p99, p999, p9999];
        let mut columns = [("max", max); 6];
        for (column, ((name, _), figure)) in columns.iter_mut().zip(QUANTILES.iter().zip(figures)) {
            *column = (name, figure);
        }
        columns
    }
}

impl Report {
    /// A report of nothing yet.
    pub(super) fn begun(
        mode: &'static str,
        target: &Target,
        clients: u32,
        load: Option<&LoadArgs>,
    ) -> Report {
        let nothing = Record::new(Instant::now());
        Report {
            mode,
            topic: target.name.to_string(),
            queues: target.queues,
            durability: target.acknowledged_at(),
            level: None,
            clients,
            load: load.map(|load| LoadFacts::new(load, target.queues)),
            warmup_seconds: 0.0,
            seconds: 0.0,
            interrupted: false,
            messages: 0,
            bytes: 0,
            messages_per_s: 0.0,
            mb_per_s: 0.0,
            latency_of: String::new(),
            latency_us: Percentiles::of(&nothing.latency),
            ack_us: None,
            send_delay_us: None,
            errors: BTreeMap::new(),
            integrity: None,
            client_cpu_seconds: None,
            timeline: nothing.timeline.rates(Duration::ZERO),
        }
    }

    /// Takes over what was measured, in a time that began with the end of the warm-up.
    pub(super) fn measured(&mut self, record: &Record, took: Duration) {
        self.level = record.level.map(|level| level.name());
        self.seconds = rounded(took.as_secs_f64(), 6);
        self.messages = record.measured.messages;
        self.bytes = record.measured.bytes;
        let per_s = record.measured.messages as f64 / took.as_secs_f64().max(1e-6);
        self.messages_per_s = rounded(per_s, 3);
        self.mb_per_s = rounded(output::mb_per_s(record.measured.bytes, took), 3);
        self.latency_us = Percentiles::of(&record.latency);
        self.timeline = record.timeline.rates(took);
    }

    /// Prints it as the command line asks for.
    pub(super) fn print(&self, json: bool) -> Result<(), Failure> {
        if json { output::json(self) } else { output::line(&self.table()) }
    }

    /// The rows of times: what they are of, and the figures.
    pub(super) fn times(&self) -> Vec<(&'static str, &Percentiles)> {
        let mut rows = vec![("latency", &self.latency_us)];
        rows.extend(self.ack_us.as_ref().map(|times| ("acknowledged", times)));
        rows.extend(self.send_delay_us.as_ref().map(|times| ("sent late by", times)));
        rows
    }

    /// For people: what was done, and under which conditions.
    pub(super) fn facts(&self) -> Vec<[String; 3]> {
        let mut rows = Vec::new();
        let mut row = |name: &str, figure: String, note: String| {
            rows.push([name.to_owned(), figure, note]);
        };
        let topic = format!("in {} of topic {}", count(self.queues.into(), "queue"), self.topic);
        row("messages", grouped(self.messages), topic);
        let size = self.load.as_ref().map(|load| format!("size {}", load.size));
        row("bytes", output::bytes(self.bytes), size.unwrap_or_default());
        let rate = grouped(self.messages_per_s.round() as u64);
        // How a topic was filled says nothing about how fast it is read.
        let sent = self.load.as_ref().filter(|_| self.mode != "consume");
        row("messages/s", rate, sent.map(LoadFacts::pace).unwrap_or_default());
        row("MB/s", format!("{:.1}", self.mb_per_s), self.load_note());
        let mut time = format!("after {} s of warm-up", self.warmup_seconds);
        if self.interrupted {
            time.push_str("; INTERRUPTED");
        }
        row("seconds", format!("{:.3}", self.seconds), time);
        let level = self.level.map(|level| format!("acknowledged when {level}"));
        row("clients", grouped(self.clients.into()), level.unwrap_or_default());
        if let Some(cpu) = self.client_cpu_seconds {
            row("client CPU", format!("{cpu:.2} s"), "this process, the measuring included".into());
        }
        if let Some(found) = &self.integrity {
            let note = match found.verified {
                true => "verified: each acknowledged message came, once and in order",
                false => "NOT VERIFIED",
            };
            row("received", grouped(found.received), note.to_owned());
            row("lost", grouped(found.lost), String::new());
            row("duplicated", grouped(found.duplicated), String::new());
            row("out of order", grouped(found.out_of_order), String::new());
        }
        row("errors", grouped(self.errors.values().sum()), String::new());
        for (name, times) in &self.errors {
            row(&format!("  {name}"), grouped(*times), String::new());
        }
        rows
    }

    fn load_note(&self) -> String {
        let Some(load) = &self.load else {
            return String::new();
        };
        let keys = load.keys.map(|keys| format!(", {}", count(keys.into(), "key")));
        format!("compression {}{}", load.compression, keys.unwrap_or_default())
    }

    fn table(&self) -> String {
        let times = self.times();
        let header: Vec<&str> =
            std::iter::once("us").chain(self.latency_us.columns().map(|(name, _)| name)).collect();
        let rows = times.iter().map(|(name, times)| {
            let figures = times.columns().map(|(_, us)| microseconds(us));
            std::iter::once((*name).to_owned()).chain(figures).collect::<Vec<_>>()
        });
        let facts = output::table(&[], &[1], self.facts());
        let times = output::table(&header, &[1, 2, 3, 4, 5, 6], rows);
        format!("{facts}\n\n{times}\n\nlatency: {}", self.latency_of)
    }
}

impl LoadFacts {
    fn new(load: &LoadArgs, queues: u32) -> LoadFacts {
        let open = load.rate.is_some();
        LoadFacts {
            size: load.size.to_string(),
            keys: load.keys,
            compression: load.compression.name(),
            batch_bytes: load.batch,
            linger_seconds: load.linger.as_secs_f64(),
            kind: if open { "open" } else { "closed" },
            rate: load.rate.map(Rate::per_second),
            in_flight: (!open).then(|| load.in_flight(queues)),
        }
    }

    fn pace(&self) -> String {
        match (self.rate, self.in_flight) {
            (Some(rate), _) if rate >= 10.0 => {
                format!("open loop at {} messages/s", grouped(rate.round() as u64))
            }
            (Some(rate), _) => format!("open loop at {rate} messages/s"),
            (_, Some(room)) => {
                format!("closed loop, at most {} in flight per client", grouped(room.into()))
            }
            _ => String::new(),
        }
    }
}

/// With a decimal only where that says something.
pub(super) fn microseconds(us: f64) -> String {
    if us < 100.0 { format!("{us:.1}") } else { grouped(us.round() as u64) }
}
