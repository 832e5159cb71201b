//! Compares a broker with many queues to one with eight, and prints the figures as JSON.
//!
//! `cargo run --release -p longwire-tests --bin many-queues [QUEUES [MESSAGES [BODY_BYTES]]]`
//! (10,000 queues, 1,000,000 messages of 1,024 bytes if not given). The two are run in turn, five
//! times: the ratios are the median ones of the five turns, and the figures of each are those of the
//! run with the median second pass. The first pass includes the making of every queue's files.

use std::process::ExitCode;
use std::time::Duration;

use longwire_tests::many_queues::{Outcome, Run};
use serde_json::{Value, json};

const FEW_QUEUES: u32 = 8;
const ROUNDS: usize = 5;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Result<Vec<u64>, _> =
        std::env::args().skip(1).map(|word| word.parse()).collect();
    let Ok(arguments) = arguments else {
        eprintln!("usage: many-queues [QUEUES [MESSAGES [BODY_BYTES]]]");
        return ExitCode::from(64);
    };
    let argument = |at: usize, default| arguments.get(at).copied().unwrap_or(default);
    let messages = argument(1, 1_000_000);
    let run = |queues: u64| Run {
        queues: queues as u32,
        messages_per_queue: messages.div_ceil(queues),
        body_bytes: argument(2, 1_024).clamp(8, 4 << 20) as usize,
    };
    let runs = [run(FEW_QUEUES.into()), run(argument(0, 10_000).clamp(1, 1_000_000))];
    let mut outcomes: [Vec<Outcome>; 2] = [Vec::new(), Vec::new()];
    // Kept to the end: ext4 is slow to make files where it has just deleted many.
    let mut folders = Vec::new();
    for _ in 0..ROUNDS {
        for (run, outcomes) in runs.iter().zip(&mut outcomes) {
            let folder = match tempfile::tempdir() {
                Ok(folder) => folder,
                Err(error) => {
                    eprintln!("many-queues: no folder for the store: {error}");
                    return ExitCode::FAILURE;
                }
            };
            outcomes.push(run.go(folder.path()).await);
            // Room for the next one.
            let _ = std::fs::remove_dir_all(folder.path().join("commitlog"));
            folders.push(folder);
        }
    }
    let ratios = |pass: usize| {
        let speed = |run: &Run, outcome: &Outcome| run.messages_per_second(&outcome.passes[pass]);
        let turns = outcomes[0].iter().zip(&outcomes[1]);
        let mut ratios: Vec<_> =
            turns.map(|(few, many)| speed(&runs[1], many) / speed(&runs[0], few)).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    };
    let (first, second) = (ratios(0), ratios(1));
    let [few, many] = outcomes.map(median);
    let figures = json!({
        "few": figures(&runs[0], &few),
        "many": figures(&runs[1], &many),
        "ratio_first_pass": first[ROUNDS / 2],
        "ratio": second[ROUNDS / 2],
        "ratios_first_pass": first,
        "ratios": second,
    });
    println!("{figures:#}");
    ExitCode::SUCCESS
}

/// The outcome with the median second pass.
fn median(mut outcomes: Vec<Outcome>) -> Outcome {
    outcomes.sort_by_key(|outcome| outcome.passes[1].consumed);
    outcomes.swap_remove(ROUNDS / 2)
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e4).round() / 10.0
}

fn figures(run: &Run, outcome: &Outcome) -> Value {
    let passes = outcome.passes.iter().map(|pass| {
        json!({
            "messages_per_s": run.messages_per_second(pass).round(),
            "produced_ms": ms(pass.produced),
            "consumed_ms": ms(pass.consumed),
            "committed_ms": ms(pass.committed),
            "broker_cpu_ms": ms(pass.broker_cpu),
            "client_cpu_ms": ms(pass.client_cpu),
        })
    });
    json!({
        "queues": run.queues,
        "messages": run.messages(),
        "body_bytes": run.body_bytes,
        "passes": passes.collect::<Vec<_>>(),
        "resident_mib": outcome.anonymous_mib,
        "descriptors": outcome.descriptors,
        "stop_ms": ms(outcome.stop),
        "restart_ms": ms(outcome.restart),
        "restart_after_kill_ms": ms(outcome.restart_after_kill),
    })
}
