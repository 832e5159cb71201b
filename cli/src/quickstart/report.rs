//! What the quickstart tells at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use longwire_client::TopicDurability;
use serde::Serialize;

use super::bulk::Bulk;
use super::latency::Latency;
use super::memory::MemoryPeaks;
use crate::output::{self, grouped, rounded};

/// Everything that was seen.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) path: String,
    pub(super) files: u64,
    pub(super) queues: u32,
    pub(super) durability: TopicDurability,
    pub(super) members: usize,
    pub(super) bulk: Bulk,
    pub(super) latency: Latency,
    pub(super) transfer_bytes: BTreeMap<String, u64>,
    pub(super) memory: MemoryPeaks,
}

/// The report: `--json` prints it as it is.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    path: String,
    files: u64,
    /// Lines, and pieces of lines longer than a message.
    messages: u64,
    /// Of bodies.
    bytes: u64,
    /// Every line came back byte for byte and in order within its queue, and none was stored twice.
    pub(super) verified: bool,
    /// Why not.
    problems: Vec<String>,
    queues: u32,
    durability: &'static str,
    members: usize,
    /// More messages than lines, for lines longer than a message.
    line_cuts: u64,
    /// Received again after a queue had changed hands, and passed over.
    duplicates: u64,
    produce_seconds: f64,
    consume_seconds: f64,
    /// 10^6 bytes of bodies a second, reading and hashing included.
    produce_mb_per_s: f64,
    /// The same on the way out, at the same time.
    consume_mb_per_s: f64,
    /// From the call of `send` to the arrival of the message, for single messages, one at a time.
    e2e_us: Percentiles,
    e2e_messages: u64,
    /// What the broker sent to consumers, by the way it was sent.
    transfer_bytes: BTreeMap<String, u64>,
    /// Peak of broker and clients together beyond mapped files (sampled).
    peak_rss_mib: Option<f64>,
    /// Peak with the parts of the mapped log that were in memory.
    peak_rss_with_mapped_mib: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Percentiles {
    p50: f64,
    p99: f64,
    p999: f64,
}

impl Report {
    pub(super) fn new(facts: Facts) -> Report {
        let Facts { bulk, latency, memory, .. } = facts;
        let mib = |kib: u64| rounded(kib as f64 / 1024.0, 1);
        let us = |time: Duration| rounded(time.as_secs_f64() * 1e6, 1);
        let mb_per_s = |time| rounded(output::mb_per_s(bulk.bytes, time), 2);
        Report {
            path: facts.path,
            files: facts.files,
            messages: bulk.messages,
            bytes: bulk.bytes,
            verified: bulk.problems.is_empty(),
            queues: facts.queues,
            durability: facts.durability.name(),
            members: facts.members,
            line_cuts: bulk.cuts,
            duplicates: bulk.duplicates,
            produce_seconds: rounded(bulk.produced_in.as_secs_f64(), 6),
            consume_seconds: rounded(bulk.consumed_in.as_secs_f64(), 6),
            produce_mb_per_s: mb_per_s(bulk.produced_in),
            consume_mb_per_s: mb_per_s(bulk.consumed_in),
            problems: bulk.problems,
            e2e_us: Percentiles {
                p50: us(latency.p50),
                p99: us(latency.p99),
                p999: us(latency.p999),
            },
            e2e_messages: latency.messages,
            transfer_bytes: facts.transfer_bytes,
            peak_rss_mib: memory.anonymous_kib.map(mib),
            peak_rss_with_mapped_mib: memory.resident_kib.map(mib),
        }
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let mut rows = Vec::new();
        let mut row = |name: &str, figure: String, note: &str| {
            rows.push([name.to_owned(), figure, note.to_owned()]);
        };
        row("files", grouped(self.files), &self.path);
        row(
            "messages",
            grouped(self.messages),
            match self.verified {
                true => "verified: every line came back byte for byte, in order within its queue",
                false => "NOT VERIFIED",
            },
        );
        let queues = output::count(self.queues.into(), "queue");
        let topic = format!("in {queues}, durability {}", self.durability);
        row("bytes", output::bytes(self.bytes), &topic);
        let rate = |seconds: f64| grouped((self.messages as f64 / seconds.max(1e-6)) as u64);
        let (produced, consumed) = (rate(self.produce_seconds), rate(self.consume_seconds));
        let figure = format!("{:.1} MB/s", self.produce_mb_per_s);
        row("produced", figure, &format!("{produced} messages/s, from reading to the last ack"));
        let figure = format!("{:.1} MB/s", self.consume_mb_per_s);
        let group = format!("{consumed} messages/s, meanwhile, by a group of {}", self.members);
        row("consumed", figure, &group);
        let single = format!("send to receive, {} messages one at a time", self.e2e_messages);
        for (name, us, note) in [
            ("end to end p50", self.e2e_us.p50, &*single),
            ("end to end p99", self.e2e_us.p99, ""),
            ("end to end p99.9", self.e2e_us.p999, ""),
        ] {
            row(name, format!("{us:.0} us"), note);
        }
        for (path, &bytes) in &self.transfer_bytes {
            row(&format!("sent by {path}"), output::bytes(bytes), "");
        }
        if let Some(mib) = self.peak_rss_mib {
            let note = "broker and clients together, without the mapped log";
            row("peak memory", format!("{mib:.1} MiB"), note);
        }
        if self.line_cuts > 0 {
            let note = "more messages than lines: a message has at most 4 MiB";
            row("cut lines", grouped(self.line_cuts), note);
        }
        for problem in &self.problems {
            row("problem", String::new(), problem);
        }
        output::table(&[], &[1], rows)
    }
}
