//! Idle is idle: parked fetches and open connections cost no processor time and little memory.
//!
//! `LONGWIRE_IDLE_SECONDS` says how long to look (10 if not set).
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use longwire_client::{Client, Durability};
use longwire_proto::data::request_header::Request;
use longwire_tests::broker_process::{BrokerCommand, BrokerProcess};
use longwire_tests::frame_client::{FrameClient, fetch};
use longwire_tests::load::Load;
use longwire_tests::wait::{until, within};

/// Of one processor.
const CPU_MAX: f64 = 0.001;
const WAKES_PER_SECOND_MAX: f64 = 10.0;
const ANONYMOUS_MIB_MAX: f64 = 40.0;
/// Longer than the broker's checkpoints are apart here.
const REST: Duration = Duration::from_millis(1_500);
const PATIENCE: Duration = Duration::from_secs(60);

fn span() -> Duration {
    let seconds =
        std::env::var("LONGWIRE_IDLE_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(10))
}

/// Waits until what was begun has come to its end: flushes, checkpoints, closing connections.
fn comes_to_rest(broker: &BrokerProcess) {
    let mut before = broker.figures();
    let rests = || {
        std::thread::sleep(REST);
        let now = broker.figures();
        let woken: u64 = now.spent_since(&before).iter().map(|(_, spent)| spent.wakes).sum();
        before = now;
        (woken <= 4).then_some(())
    };
    until("the broker comes to rest", PATIENCE, rests);
}

fn assert_idle(broker: &BrokerProcess) {
    comes_to_rest(broker);
    let before = broker.figures();
    std::thread::sleep(span());
    let after = broker.figures();
    let seconds = span().as_secs_f64();
    let spent = after.spent_since(&before);
    let cpu: Duration = spent.iter().map(|(_, spent)| spent.cpu).sum();
    let cpu = cpu.as_secs_f64() / seconds;
    let wakes: u64 = spent.iter().map(|(_, spent)| spent.wakes).sum();
    let wakes = wakes as f64 / seconds;
    println!(
        "over {seconds} s: {:.4} % of a processor, {wakes:.1} wakes a second, RssAnon {:.1} MiB, \
         {} threads",
        cpu * 100.0,
        after.anonymous_mib(),
        after.threads.len()
    );
    for (thread, spent) in spent.iter().filter(|(_, spent)| spent.wakes > 0) {
        println!("  {thread}: woken {} times, {:?}", spent.wakes, spent.cpu);
    }
    assert!(cpu < CPU_MAX, "{:.4} % of a processor", cpu * 100.0);
    assert!(wakes < WAKES_PER_SECOND_MAX, "{wakes} wakes a second");
    assert!(after.anonymous_mib() < ANONYMOUS_MIB_MAX, "{:.1} MiB", after.anonymous_mib());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_parked_fetches_and_a_hundred_idle_connections_cost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let broker = BrokerCommand::new(folder.path()).set("storage.checkpoint_interval=1s").start();
    let client = Client::connect(broker.control()).await.unwrap();
    // It has worked before.
    let load = Load::start(&client, "t", 2, Durability::Flush, Duration::ZERO).await;
    within("acknowledgements", PATIENCE, load.reaches(5_000)).await;
    load.stop().await;
    let ends =
        client.admin().list_offsets("t", longwire_client::OffsetPoint::Latest).await.unwrap();
    drop(client);

    let data = broker.addresses().data;
    let queues: Vec<(u32, u64)> = ends.iter().map(|end| (end.queue, end.offset)).collect();
    let parked: Vec<FrameClient> = (0..100)
        .map(|_| {
            let mut client = FrameClient::connect(data);
            client.send(Request::Fetch(fetch("t", &queues, 1 << 20, PATIENCE)), &[]);
            client
        })
        .collect();
    let idle: Vec<FrameClient> = (0..100).map(|_| FrameClient::connect(data)).collect();
    let all_parked = || (broker.metric("longwire_parked_fetches") == 100.0).then_some(());
    until("the fetches are parked", PATIENCE, all_parked);

    assert_idle(&broker);
    assert_eq!(broker.metric("longwire_parked_fetches"), 100.0, "they are still parked");
    drop((parked, idle));
}
