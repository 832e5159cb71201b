//! HTTP: whether the broker lives and is ready, and what it has counted.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::IncomingStream;
use prometheus_client::metrics::counter::Counter;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::gate::{Gate, Heard, Rules};
use crate::metrics::scrape::scrape;
use crate::refusals::Refusals;
use crate::state::BrokerState;

/// How long one connection may take in all; each is for one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
pub(crate) const CONNECTIONS_MAX: usize = 128;
/// What a connection that is refused is told.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\n\
    content-length: 21\r\n\r\ntoo many connections\n";
/// What Prometheus knows the text of a scrape by.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Set once the store is open and the other ports are served.
pub(crate) type Started = Arc<OnceLock<Arc<BrokerState>>>;

/// Serves from before the store is opened until after it is closed.
pub(crate) async fn serve(
    listener: TcpListener,
    started: Started,
    refused: Counter,
    stop: CancellationToken,
) {
    let routes = Router::new()
        .route("/health/live", get(|| async { "alive\n" }))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .with_state(started);
    let routes = routes.layer(middleware::from_fn(one_request));
    let gate = Gate::new(
        listener,
        Rules {
            greeting_timeout: CONNECTION_TIMEOUT,
            greeting_bytes: usize::MAX,
            keepalive: None,
            refusal: TOO_MANY,
        },
        Refusals::new("HTTP", "fixed", CONNECTIONS_MAX, refused),
    );
    let routes = routes.into_make_service_with_connect_info::<Heard>();
    let served = axum::serve(gate, routes).with_graceful_shutdown(stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::error!(%error, "HTTP has failed");
    }
}

impl Connected<IncomingStream<'_, Gate>> for Heard {
    fn connect_info(stream: IncomingStream<'_, Gate>) -> Heard {
        stream.io().heard().clone()
    }
}

/// One request per connection: then a bound on its age is a bound on how slow it can be.
async fn one_request(
    ConnectInfo(heard): ConnectInfo<Heard>,
    request: Request,
    next: Next,
) -> Response {
    heard.note();
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn ready(State(started): State<Started>) -> (StatusCode, String) {
    match started.get().map(|state| state.unready()) {
        Some(None) => (StatusCode::OK, "ready\n".into()),
        Some(Some(why)) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        None => (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting\n".into()),
    }
}

async fn metrics(State(started): State<Started>) -> Response {
    let Some(state) = started.get() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response();
    };
    match state.blocking(scrape).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be read\n").into_response(),
    }
}
