//! `longwire-broker verify`: looking at a store, and saving what is whole, while no broker has it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use longwire_storage::{LostMessage, OpenError, SalvageError, Verified, salvage, verify};
use serde_json::json;

use crate::{exit, output};

/// Checks every record of a store and holds the views against them. Changes nothing.
///
/// Exit status: 0 the log is whole, or what is whole was copied; 64 wrong usage, or the folder to copy
/// to is not empty or in the store; 65 the log is damaged; 73 a broker has the store; 74 it cannot be read, or the copy
/// or the output not be written; 141 nobody reads the output any more.
#[derive(Debug, Args)]
pub(crate) struct VerifyFlags {
    /// Copy what is whole to this new folder and build all views there. Every message keeps its
    /// offset; consumers pass over those that are lost.
    #[arg(long, value_name = "FOLDER")]
    salvage: Option<PathBuf>,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Runs the command on the store in a folder.
pub(crate) fn run(dir: &Path, flags: &VerifyFlags) -> ExitCode {
    let verified = match &flags.salvage {
        None => verify(dir).map_err(SalvageError::Open),
        Some(to) => salvage(dir, to),
    };
    let verified = match verified {
        Ok(verified) => verified,
        Err(error) => {
            output::complain(&error.to_string());
            return ExitCode::from(match error {
                SalvageError::Open(OpenError::Locked { .. }) => exit::LOCKED,
                SalvageError::Exists(_) | SalvageError::Inside(_) => exit::USAGE,
                _ => exit::IO,
            });
        }
    };
    let salvaged = flags.salvage.as_deref();
    let text = match flags.json {
        true => format!("{:#}", as_json(&verified, salvaged)),
        false => as_text(dir, &verified, salvaged),
    };
    if let Err(status) = output::print(&format!("{text}\n")) {
        return status;
    }
    if verified.is_whole() || salvaged.is_some() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::CORRUPT)
    }
}

/// One line for each fact.
fn as_text(dir: &Path, verified: &Verified, salvaged: Option<&Path>) -> String {
    let Verified { segments, records, bytes, first_position, end_position, .. } = verified;
    let mut lines = vec![
        format!("{}: {records} whole records of {bytes} bytes", dir.display()),
        format!("  {segments} segments, positions {first_position} to {end_position}"),
    ];
    if let Some(position) = verified.torn_tail {
        lines.push(format!(
            "  an append was interrupted at position {position}; it was never acknowledged"
        ));
    }
    for damage in &verified.damage {
        lines.push(format!(
            "damaged: {} at position {}, {} bytes: {}",
            damage.path.display(),
            damage.position,
            damage.bytes,
            damage.reason
        ));
        lines.extend(lost(&damage.messages).iter().map(|messages| format!("  lost: {messages}")));
    }
    for gap in &verified.gaps {
        let (topic, queue, last) = (&gap.topic, gap.queue, gap.end - 1);
        lines.push(format!("missing: {topic}/{queue} offsets {} to {last}", gap.first));
    }
    for view in &verified.views {
        lines.push(format!("view: {view}; the next start builds the views again"));
    }
    lines.push(match (verified.is_whole(), salvaged) {
        (_, Some(to)) => format!("what is whole was copied to {}", to.display()),
        (true, None) => "the log is whole".to_owned(),
        (false, None) => "the log is damaged; --salvage FOLDER copies what is whole".to_owned(),
    });
    lines.join("\n")
}

/// Those of one queue that follow one another as one.
fn lost(messages: &[LostMessage]) -> Vec<String> {
    let mut messages: Vec<_> = messages.iter().collect();
    // Those of one queue stay in the order of the log.
    messages.sort_by_key(|message| (&message.topic, message.queue));
    let follows = |one: &&LostMessage, next: &&LostMessage| {
        (&one.topic, one.queue, one.offset + 1) == (&next.topic, next.queue, next.offset)
    };
    let runs = messages.chunk_by(follows).map(|run| match run {
        [first, .., last] => format!(
            "{}/{} offsets {} to {}, at positions {} to {}",
            first.topic, first.queue, first.offset, last.offset, first.position, last.position
        ),
        run => run.iter().map(|message| message.to_string()).collect(),
    });
    runs.collect()
}

fn as_json(verified: &Verified, salvaged: Option<&Path>) -> serde_json::Value {
    let damage = verified.damage.iter().map(|damage| {
        let messages = damage.messages.iter().map(|message| {
            json!({
                "topic": message.topic,
                "queue": message.queue,
                "offset": message.offset,
                "position": message.position,
            })
        });
        json!({
            "file": damage.path.display().to_string(),
            "position": damage.position,
            "bytes": damage.bytes,
            "reason": damage.reason,
            "messages": messages.collect::<Vec<_>>(),
        })
    });
    let gaps = verified.gaps.iter().map(
        |gap| json!({"topic": gap.topic, "queue": gap.queue, "first": gap.first, "end": gap.end}),
    );
    json!({
        "whole": verified.is_whole(),
        "segments": verified.segments,
        "records": verified.records,
        "bytes": verified.bytes,
        "first_position": verified.first_position,
        "end_position": verified.end_position,
        "torn_tail": verified.torn_tail,
        "damage": damage.collect::<Vec<_>>(),
        "gaps": gaps.collect::<Vec<_>>(),
        "views": verified.views,
        "salvaged_to": salvaged.map(|to| to.display().to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use longwire_storage::Damage;

    #[test]
    fn lost_messages_that_follow_one_another_are_one_line_and_all_are_in_json() {
        let message =
            |queue, offset, position| LostMessage { topic: "t".into(), queue, offset, position };
        // In the order of the log, as they are found.
        let mut messages: Vec<_> =
            (0..1000).map(|i| message(i % 2, u64::from(i / 2), 100 * u64::from(i))).collect();
        messages.push(message(1, 502, 200_000));
        let damage = Damage {
            path: "segment".into(),
            position: 0,
            bytes: 300_000,
            reason: "the segment is missing".into(),
            messages,
        };
        let verified = Verified { damage: vec![damage], ..Verified::default() };
        let text = as_text(Path::new("store"), &verified, None);
        let lost: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("  lost: ")).collect();
        assert_eq!(
            lost,
            [
                "t/0 offsets 0 to 499, at positions 0 to 99800",
                "t/1 offsets 0 to 499, at positions 100 to 99900",
                "t/1 offset 502, at position 200000",
            ]
        );
        let json = as_json(&verified, None);
        assert_eq!(json["damage"][0]["messages"].as_array().map(Vec::len), Some(1001));
    }
}
