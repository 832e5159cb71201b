//! Compares a broker with many queues to one with eight, and prints the figures as JSON.
//!
//! `cargo run --release -p longwire-tests --bin many-queues [QUEUES [MESSAGES [BODY_BYTES]]]`
//! (10,000 queues, 1,000,000 messages of 1,024 bytes if not given). The two are run in turn, three
//! times, and the best of each counts.

use std::process::ExitCode;

use longwire_tests::many_queues::{Outcome, Run};
use serde_json::json;

const FEW_QUEUES: u32 = 8;
const ROUNDS: usize = 3;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Result<Vec<u64>, _> =
        std::env::args().skip(1).map(|word| word.parse()).collect();
    let Ok(arguments) = arguments else {
        eprintln!("usage: many-queues [QUEUES [MESSAGES [BODY_BYTES]]]");
        return ExitCode::from(64);
    };
    let argument = |at: usize, default| arguments.get(at).copied().unwrap_or(default);
    let many = Run {
        queues: argument(0, 10_000).clamp(1, 1_000_000) as u32,
        messages: argument(1, 1_000_000),
        body_bytes: argument(2, 1_024).clamp(8, 4 << 20) as usize,
    };
    let few = Run { queues: FEW_QUEUES, ..many };
    let mut best = [(few, None), (many, None)];
    for _ in 0..ROUNDS {
        for (run, best) in &mut best {
            let folder = match tempfile::tempdir() {
                Ok(folder) => folder,
                Err(error) => {
                    eprintln!("many-queues: no folder for the store: {error}");
                    return ExitCode::FAILURE;
                }
            };
            let outcome = run.go(folder.path()).await;
            let better = |best: &Outcome| outcome.consumed < best.consumed;
            if best.as_ref().is_none_or(better) {
                *best = Some(outcome);
            }
        }
    }
    let [few, many] = best.map(|(run, outcome)| (run, outcome.unwrap_or_default()));
    let ratio = many.0.messages_per_second(&many.1) / few.0.messages_per_second(&few.1);
    println!("{:#}", json!({ "few": figures(few), "many": figures(many), "ratio": ratio }));
    ExitCode::SUCCESS
}

fn figures((run, outcome): (Run, Outcome)) -> serde_json::Value {
    let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
    json!({
        "queues": run.queues,
        "messages": run.messages,
        "body_bytes": run.body_bytes,
        "messages_per_s": run.messages_per_second(&outcome),
        "produced_ms": ms(outcome.produced),
        "consumed_ms": ms(outcome.consumed),
        "committed_ms": ms(outcome.committed),
        "resident_mib": outcome.anonymous_mib,
        "descriptors": outcome.descriptors,
        "stop_ms": ms(outcome.stop),
        "restart_ms": ms(outcome.restart),
        "restart_after_kill_ms": ms(outcome.restart_after_kill),
    })
}
