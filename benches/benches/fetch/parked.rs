//! How soon a consumer that waits has a record.

use std::io;
use std::time::{Duration, Instant};

use longwire_benches::{histogram, percentiles_us};
use longwire_proto::data::response_header::Response;
use longwire_tests::noise;
use serde::{Deserialize, Serialize};

use crate::measure::Plan;
use crate::one_record::{Connection, fetch, produce};
use crate::store::{ArmBroker, ONE_RECORD_TOPIC, RECORD_BYTES, record};

/// From before a produce request of one record is sent until the fetch that was parked is answered.
/// The record becomes visible in between, so this is more than the time since then.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Parked {
    pub(crate) fetched_p50_us: f64,
    pub(crate) fetched_p99_us: f64,
}

pub(crate) fn measure(plan: &Plan<'_>, broker: &mut ArmBroker) -> io::Result<Parked> {
    plan.pinning.serve();
    let address = broker.running().addresses().data;
    plan.pinning.consume();
    let mut producer = Connection::open(address)?;
    let mut consumer = Connection::open(address)?;
    let records = record(ONE_RECORD_TOPIC, 0, &noise(1, RECORD_BYTES));
    let mut fetched = histogram();
    let began = Instant::now();
    while began.elapsed() < plan.moment * plan.rounds as u32 {
        producer.send(produce(), &records)?;
        let next = producer.produced()?;
        consumer.send(fetch(next, Duration::from_secs(10)), &[])?;
        // Requests are taken up in order: once this one is answered, that one is parked.
        consumer.send(fetch(next, Duration::ZERO), &[])?;
        consumer.receive()?;
        let sent = Instant::now();
        producer.send(produce(), &records)?;
        let answer = consumer.receive()?;
        fetched.record(sent.elapsed().as_nanos() as u64).map_err(io::Error::other)?;
        let Some(Response::Fetch(answer)) = answer.response else {
            return Err(io::Error::other("a fetch was refused"));
        };
        if answer.results.iter().map(|result| result.bytes as usize).sum::<usize>() != RECORD_BYTES
        {
            return Err(io::Error::other(format!("not the record at {next}: {answer:?}")));
        }
        producer.produced()?;
    }
    let [fetched_p50_us, fetched_p99_us, _] = percentiles_us(&fetched);
    Ok(Parked { fetched_p50_us, fetched_p99_us })
}
