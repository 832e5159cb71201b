//! How soon a record is acknowledged, alone and beside a reader of evicted history.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use hdrhistogram::Histogram;
use longwire_benches::{histogram, percentiles_us};
use longwire_tests::noise;
use serde::{Deserialize, Serialize};

use crate::matrix::Arm;
use crate::measure::Plan;
use crate::one_record::{Connection, produce};
use crate::store::{ArmBroker, ONE_RECORD_TOPIC, RECORD_BYTES, record};

/// From before a produce request of one record is sent until it is answered, durability `write`; p50,
/// p99 and p99.9 over all rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Produced {
    pub(crate) arm: Arm,
    pub(crate) alone_us: [f64; 3],
    pub(crate) beside_us: [f64; 3],
}

/// For adaptive, and for what other brokers do about history.
pub(crate) fn measure(plan: &Plan<'_>, arms: &mut [ArmBroker]) -> io::Result<Vec<Produced>> {
    let compared = |broker: &&mut ArmBroker| [Arm::Adaptive, Arm::Sendfile].contains(&broker.arm);
    let mut arms: Vec<_> = arms.iter_mut().filter(compared).collect();
    let mut latencies: Vec<_> = arms.iter().map(|_| [histogram(), histogram()]).collect();
    for round in 0..plan.rounds {
        for turn in 0..arms.len() {
            let at = (turn + round) % arms.len();
            sample(plan, arms[at], &mut latencies[at])?;
        }
    }
    let rows = arms.iter().zip(&latencies).map(|(broker, latency)| {
        let [alone_us, beside_us] = latency.each_ref().map(percentiles_us);
        Produced { arm: broker.arm, alone_us, beside_us }
    });
    Ok(rows.collect())
}

/// One arm in one round.
fn sample(
    plan: &Plan<'_>,
    broker: &mut ArmBroker,
    [alone, beside]: &mut [Histogram<u64>; 2],
) -> io::Result<()> {
    plan.restart_cold(broker, plan.sizes.history_end())?;
    let mut producer = Connection::open(broker.running().addresses().data)?;
    let began = Instant::now();
    produce_while(&mut producer, &mut histogram(), || began.elapsed() < plan.moment / 4)?;
    let began = Instant::now();
    produce_while(&mut producer, alone, || began.elapsed() < plan.moment)?;
    plan.beside_history(broker, |reading| {
        produce_while(&mut producer, beside, || reading.load(Relaxed))
    })?;
    Ok(())
}

fn produce_while(
    producer: &mut Connection,
    latency: &mut Histogram<u64>,
    more: impl Fn() -> bool,
) -> io::Result<()> {
    let records = record(ONE_RECORD_TOPIC, 0, &noise(1, RECORD_BYTES));
    while more() {
        let sent = Instant::now();
        producer.send(produce(), &records)?;
        producer.produced()?;
        latency.record(sent.elapsed().as_nanos() as u64).map_err(io::Error::other)?;
    }
    Ok(())
}
