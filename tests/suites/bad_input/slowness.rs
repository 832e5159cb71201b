//! Clients that do not read, do not finish, or do not begin.

use std::io::Write;
use std::time::{Duration, Instant};

use longwire_proto::ErrorCode;
use longwire_proto::data::{self, request_header::Request};
use longwire_tests::frame_client::{FrameClient, encode, fetch, record};
use longwire_tests::noise;
use longwire_tests::wait::until;

use crate::Scene;

const PATIENCE: Duration = Duration::from_secs(60);
const CONNECTIONS: &str = "longwire_connections";

#[test]
fn consumers_that_stop_reading_are_cut_off_and_pin_no_memory() {
    let scene = Scene::start(&["limits.stall_timeout=1s", "broker.default_durability=write"]);
    let mut producer = scene.connect();
    let body = noise(3, 1 << 20);
    for _ in 0..40 {
        assert_eq!(producer.produce("t", 0, &record("t", 0, &body)).code, 0);
    }
    let before = (scene.broker.figures(), scene.broker.metric(CONNECTIONS));
    let stuck: Vec<FrameClient> = (0..20)
        .map(|_| {
            let mut client = scene.connect();
            for _ in 0..20 {
                let request = fetch("t", &[(0, 0)], 16 << 20, PATIENCE);
                client.send(Request::Fetch(request), &[]);
            }
            client
        })
        .collect();
    let mut most = 0.0_f64;
    let began = Instant::now();
    let cut_off = || {
        most = most.max(scene.broker.figures().anonymous_mib());
        (scene.broker.metric(CONNECTIONS) <= before.1).then_some(())
    };
    until("the stuck consumers are cut off", PATIENCE, cut_off);
    let grown = most - before.0.anonymous_mib();
    println!("cut off after {:?}; RssAnon grew by {grown:.1} MiB", began.elapsed());
    // 6,400 MiB were asked for.
    assert!(grown < 48.0, "{grown} MiB");
    drop(stuck);
    scene.assert_unharmed();
}

#[test]
fn clients_that_never_finish_their_frames_cost_what_they_sent_and_are_told() {
    let scene = Scene::start(&["limits.frame_timeout=4s", "limits.request_memory_bytes=24MiB"]);
    let before = (scene.broker.figures(), scene.broker.metric(CONNECTIONS));
    let run = data::ProduceRun { topic: "t".into(), queue: 0, bytes: 8 << 20 };
    let request = data::ProduceRequest { durability: 0, runs: vec![run] };
    let frame = encode(1, Request::Produce(request), &vec![0; 8 << 20]);
    let mut unfinished: Vec<FrameClient> = (0..100).map(|_| scene.connect()).collect();
    for client in &mut unfinished {
        // As much as the broker takes: it stops reading where its memory for requests ends.
        client.stream.set_nonblocking(true).unwrap();
        let mut left = &frame[..frame.len() - 1];
        while let Ok(written @ 1..) = client.stream.write(left) {
            left = &left[written..];
        }
        client.stream.set_nonblocking(false).unwrap();
    }
    let most = scene.broker.figures().anonymous_mib() - before.0.anonymous_mib();
    println!("RssAnon grew by {most:.1} MiB with 100 unfinished frames of 8 MiB");
    assert!(most < 24.0 + 32.0, "{most} MiB");
    // Others want the memory it holds, long before its time is up.
    assert_eq!(unfinished[0].error_and_close(), ErrorCode::Overloaded);
    drop(unfinished);
    let gone = || (scene.broker.metric(CONNECTIONS) <= before.1).then_some(());
    until("they are all gone", PATIENCE, gone);
    scene.assert_unharmed();
}

#[test]
fn clients_that_say_nothing_are_told_and_closed() {
    let scene = Scene::start(&["limits.hello_timeout=500ms"]);
    let address = scene.broker.addresses().data;
    let mut silent: Vec<FrameClient> =
        (0..50).map(|_| FrameClient::connect_silently(address).unwrap()).collect();
    for client in &mut silent {
        assert_eq!(client.error_and_close(), ErrorCode::Timeout);
    }
    scene.assert_unharmed();
}
