//! `BrokerService`.

use std::sync::Arc;

use longwire_proto::control::broker_service_server::BrokerService;
use longwire_proto::control::{
    DescribeBrokerRequest, DescribeBrokerResponse, GetStatisticsRequest, GetStatisticsResponse,
    PathBytes,
};
use tonic::{Request, Response, Status};

use crate::metrics::TransferPath;
use crate::metrics::scrape::Resident;
use crate::state::BrokerState;

#[derive(Debug, Clone)]
pub(super) struct Broker(pub(super) Arc<BrokerState>);

#[tonic::async_trait]
impl BrokerService for Broker {
    async fn describe_broker(
        &self,
        _: Request<DescribeBrokerRequest>,
    ) -> Result<Response<DescribeBrokerResponse>, Status> {
        let state = &self.0;
        Ok(Response::new(DescribeBrokerResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            data_address: state.advertised_data.clone(),
            started_ms: state.started_ms,
            auto_create_topics: state.config.broker.auto_create_topics,
            default_queues: state.config.broker.default_queues,
        }))
    }

    async fn get_statistics(
        &self,
        _: Request<GetStatisticsRequest>,
    ) -> Result<Response<GetStatisticsResponse>, Status> {
        self.0.answer(self.0.blocking(statistics).await)
    }
}

fn statistics(state: &BrokerState) -> GetStatisticsResponse {
    let (stats, metrics) = (state.store.stats(), &state.metrics);
    let topics: Vec<_> = state.store.topics();
    let own = topics.iter().filter(|topic| !topic.is_system());
    let gauge = |value: i64| u64::try_from(value).unwrap_or(0);
    GetStatisticsResponse {
        first_position: stats.first_position,
        written_position: stats.written_position,
        durable_position: stats.durable_position,
        dispatched_position: stats.dispatched_position,
        segments: stats.segments,
        topics: own.clone().count() as u64,
        queues: own.map(|topic| u64::from(topic.config().queues)).sum(),
        groups: state.store.groups().len() as u64,
        connections: gauge(metrics.connections.get()),
        records_appended: stats.records_appended,
        bytes_appended: stats.bytes_appended,
        syncs: stats.syncs,
        transfer_bytes: TransferPath::ALL
            .map(|path| PathBytes { path: path.name().into(), bytes: metrics.sent_bytes(path) })
            .into(),
        cold_waits: metrics.cold_waits.get(),
        parked_fetches: gauge(metrics.parked_fetches.get()),
        resident_bytes: Resident::read().unwrap_or_default().own_bytes,
    }
}
