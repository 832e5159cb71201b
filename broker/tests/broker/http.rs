use std::net::SocketAddr;
use std::time::{Duration, Instant};

use longwire_broker::Broker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::scene::{Scene, connect, small};

pub(crate) async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: broker\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn health_and_metrics_tell_of_a_running_broker() {
    let mut scene = Scene::start().await;
    scene.create("t", 3).await;
    scene.append("t", 0, 2).await;
    let address = scene.broker.http_addr();
    assert!(get(address, "/health/live").await.starts_with("HTTP/1.1 200"));
    assert!(get(address, "/health/ready").await.starts_with("HTTP/1.1 200"));
    assert!(get(address, "/nothing").await.starts_with("HTTP/1.1 404"));
    let metrics = get(address, "/metrics").await;
    assert!(metrics.contains("application/openmetrics-text"));
    for line in ["longwire_queues 3", "longwire_topics 1", "longwire_store_failed 0", "# EOF"] {
        assert!(metrics.contains(line), "{line} missing in:\n{metrics}");
    }
    let documented = include_str!("../../../docs/configuration.md");
    for line in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, _) = line.split_once(' ').unwrap();
        assert!(documented.contains(&format!("`{name}")), "{name} is not documented");
    }
}

#[tokio::test]
async fn the_grpc_health_service_and_reflection_answer() {
    let scene = Scene::start().await;
    let mut health = HealthClient::new(connect(&scene.broker).await);
    for service in ["", "longwire.v1.TopicService", "longwire.v1.GroupService"] {
        let request = HealthCheckRequest { service: service.into() };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service:?}");
    }
}

#[tokio::test]
async fn slow_and_senseless_clients_are_cut_and_do_not_stand_in_the_way() {
    let scene = Scene::start_with(|config| {
        config.limits.hello_timeout = Duration::from_millis(200);
    })
    .await;
    // Says nothing: cut when its time is up.
    let mut silent = TcpStream::connect(scene.broker.control_addr()).await.unwrap();
    // Says something else than HTTP/2.
    let mut garbage = TcpStream::connect(scene.broker.control_addr()).await.unwrap();
    garbage.write_all(&[0xff; 4096]).await.unwrap();
    for stream in [&mut silent, &mut garbage] {
        let mut rest = Vec::new();
        let read = stream.read_to_end(&mut rest);
        // A reset is as good an end as any.
        let _ = tokio::time::timeout(Duration::from_secs(10), read).await.expect("cut");
    }
}

#[tokio::test]
async fn requests_that_are_never_finished_make_no_other_wait() {
    let scene = Scene::start().await;
    let address = scene.broker.http_addr();
    let mut slow = Vec::new();
    for _ in 0..4 {
        for _ in 0..150 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // The broker may have cut it by now.
            let _ = stream.write_all(b"GET /health/live HTTP/1.1\r\nX: ").await;
            slow.push(stream);
        }
        for path in ["/health/live", "/metrics"] {
            let began = Instant::now();
            assert!(get(address, path).await.starts_with("HTTP/1.1 200"), "{path}");
            // Before the first of the others has had its time.
            assert!(began.elapsed() < Duration::from_secs(2), "{path}: {:?}", began.elapsed());
        }
    }
}

#[tokio::test]
async fn a_control_connection_that_says_nothing_gives_way_and_one_in_use_stays() {
    let mut scene = Scene::start_with(|config| config.limits.connections_max = 2).await;
    scene.create("t", 1).await;
    let mut silent = TcpStream::connect(scene.broker.control_addr()).await.unwrap();
    let began = Instant::now();
    let mut other = HealthClient::new(connect(&scene.broker).await);
    other.check(HealthCheckRequest::default()).await.unwrap();
    // A reset is as good an end as any.
    let _ = silent.read_to_end(&mut Vec::new()).await;
    assert!(began.elapsed() < Duration::from_secs(5), "the silent one gave way before its time");
    scene.create("another", 1).await;
}

#[tokio::test]
async fn half_a_request_does_not_hold_up_the_end() {
    let scene = Scene::start().await;
    let mut half = TcpStream::connect(scene.broker.http_addr()).await.unwrap();
    half.write_all(b"GET /me").await.unwrap();
    // Answered behind it, so it has been accepted.
    assert!(get(scene.broker.http_addr(), "/health/live").await.starts_with("HTTP/1.1 200"));
    let began = Instant::now();
    scene.broker.shutdown().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn a_broker_can_be_started_used_and_dropped_inside_any_runtime() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let began = Instant::now();
            let broker = Broker::start(small(folder.path())).await.unwrap();
            assert!(began.elapsed() < Duration::from_secs(5));
            assert!(get(broker.http_addr(), "/health/ready").await.starts_with("HTTP/1.1 200"));
            let second = Broker::start(small(folder.path())).await.unwrap_err();
            assert!(second.to_string().contains("in use"), "{second}");
            broker.shutdown().await.unwrap();
        });
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async { drop(Broker::start(small(folder.path())).await.unwrap()) });
}
