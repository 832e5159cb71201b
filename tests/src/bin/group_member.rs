//! A member of a group in a process of its own, for suites that kill it.
//!
//! `group-member BROKER GROUP TOPIC CLIENT_ID` prints what it receives and what it has committed, one
//! line each (`longwire_tests::member_process` reads them). It commits after every batch. At the end of
//! its input it leaves the group and ends.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use longwire_client::{Client, Consumer, Error, QueueOffset, TagFilter, TopicQueue};
use longwire_tests::history::MessageId;
use tokio::sync::watch;

/// Messages between two commits.
const BATCH: usize = 20;
/// After a commit that was refused.
const PAUSE: Duration = Duration::from_millis(50);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [broker, group, topic, client_id] = &arguments[..] else {
        eprintln!("usage: group-member BROKER GROUP TOPIC CLIENT_ID");
        return ExitCode::from(64);
    };
    match run(broker, group, topic, client_id).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("group-member: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(broker: &str, group: &str, topic: &str, client_id: &str) -> Result<(), Error> {
    let client = Client::builder(broker).client_id(client_id).connect().await?;
    let consumer = client.consumer().group(group).subscribe(topic, TagFilter::all());
    let mut consumer = consumer.auto_commit(None).build().await?;
    let mut input_ended = end_of_input();
    loop {
        let received = tokio::select! {
            received = consumer.recv_many(BATCH) => received,
            _ = input_ended.wait_for(|ended| *ended) => return consumer.close().await,
        };
        match received {
            Ok(received) => {
                let lines = received.iter().map(|message| match MessageId::of(&message.body()) {
                    Some(MessageId { producer, number }) => {
                        format!(
                            "got {} {} {producer} {number}\n",
                            message.queue(),
                            message.offset()
                        )
                    }
                    None => format!("damaged {} {}\n", message.queue(), message.offset()),
                });
                print(&lines.collect::<String>());
            }
            Err(error) => print(&format!("error {error}\n")),
        }
        commit(&consumer).await;
    }
}

async fn commit(consumer: &Consumer) {
    let at = |queue: TopicQueue| {
        let offset = consumer.position(&queue)?;
        Some(QueueOffset::new(queue.topic, queue.queue, offset))
    };
    let offsets: Vec<QueueOffset> = consumer.assignment().into_iter().filter_map(at).collect();
    if offsets.is_empty() {
        return;
    }
    match consumer.commit_offsets(&offsets).await {
        Ok(()) => {
            let lines = offsets.iter().map(|at| format!("committed {} {}\n", at.queue, at.offset));
            print(&lines.collect::<String>());
        }
        Err(error) => {
            let code = error.code().map_or("none", |code| code.name());
            print(&format!("refused {code}\n"));
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Writes lines at once, so that they are out should the process be killed right after.
fn print(lines: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more: the end of the input comes next.
    let _ = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
}

fn end_of_input() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = sender.send(true);
    });
    receiver
}
