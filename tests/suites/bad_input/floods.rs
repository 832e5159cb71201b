//! Too many connections, and very many idle ones.

use std::net::TcpStream;
use std::time::Duration;

use longwire_proto::ErrorCode;
use longwire_proto::data::response_header::Response;
use longwire_tests::frame_client::{FrameClient, hello, record};
use longwire_tests::wait::until;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::Scene;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn connections_over_the_limit_are_refused_and_there_is_room_again_later() {
    // The healthy pair has two.
    let scene = Scene::start(&["limits.connections_max=12"]);
    let address = scene.broker.addresses().data;
    let mut first: Vec<FrameClient> = (0..10).map(|_| scene.connect()).collect();
    for _ in 0..200 {
        let mut surplus = FrameClient::connect_silently(address).unwrap();
        assert_eq!(surplus.error_and_close(), ErrorCode::Overloaded);
    }
    for client in &mut first {
        assert_eq!(client.produce("t", 0, &record("t", 0, b"undisturbed")).code, 0);
    }
    drop(first);
    let room = || {
        let mut client = FrameClient::connect_silently(address).ok()?;
        client.send(hello(), &[]);
        matches!(client.receive(), Some((_, Response::Hello(_), _))).then_some(())
    };
    until("there is room again", PATIENCE, room);
    scene.assert_unharmed();
}

/// 5,000 unless the system gives this process and the broker fewer descriptors, of which the broker
/// keeps some from its data plane.
fn idle_connections() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    (limit.maximum.unwrap_or(u64::MAX) / 4).min(5_000) as usize
}

#[test]
fn thousands_of_idle_connections_are_cheap_and_leave_nothing_behind() {
    let scene = Scene::start(&[]);
    let before = scene.broker.figures();
    let count = idle_connections();
    let idle: Vec<FrameClient> = (0..count).map(|_| scene.connect()).collect();
    let with = scene.broker.figures();
    let each = with.anonymous_bytes.saturating_sub(before.anonymous_bytes) / count as u64;
    println!(
        "{count} idle connections: RssAnon {:.1} MiB, {each} bytes for each",
        with.anonymous_mib()
    );
    assert!(with.descriptors >= before.descriptors + count);
    assert!(each < 16 << 10, "{each} bytes for an idle connection");
    scene.connect();

    drop(idle);
    let closed = || {
        let descriptors = scene.broker.figures().descriptors;
        (descriptors <= before.descriptors + 2).then_some(descriptors)
    };
    let (took, descriptors) = until("the descriptors are given back", PATIENCE, closed);
    println!("{descriptors} descriptors again after {took:?}, {} before", before.descriptors);
    scene.assert_unharmed();
}

#[test]
fn floods_of_connections_on_control_and_http_are_bounded() {
    let scene = Scene::start(&["limits.connections_max=100", "limits.hello_timeout=2s"]);
    let addresses = scene.broker.addresses();
    let before = scene.broker.figures();
    let flood: Vec<TcpStream> = [addresses.control, addresses.http]
        .into_iter()
        .flat_map(|address| (0..300).map(move |_| TcpStream::connect(address).unwrap()))
        .collect();
    let most = scene.broker.figures();
    println!(
        "{} descriptors with {} connections on control and HTTP, {} before",
        most.descriptors,
        flood.len(),
        before.descriptors
    );
    assert!(most.descriptors < before.descriptors + 100 + 128 + 20, "{most:?}");
    drop(flood);
    let closed = || (scene.broker.figures().descriptors <= before.descriptors + 2).then_some(());
    until("the descriptors are given back", PATIENCE, closed);
    scene.assert_unharmed();
}
