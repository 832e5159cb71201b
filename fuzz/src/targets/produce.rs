//! The body of a produce request: runs of records, checked as they are before an append.

use bytes::BytesMut;
use longwire_proto::data::{RequestHeader, request_header::Request};
use longwire_proto::frame::{self, Prefix};
use longwire_proto::limits::{REQUEST_FRAME_BYTES_MAX, RUNS_PER_PRODUCE_MAX};
use longwire_proto::record::RecordView;
use longwire_storage::RecordRun;

pub(super) fn run(data: &[u8]) {
    let mut buffer = BytesMut::from(data);
    let Ok(Some(prefix)) = Prefix::parse(&buffer, REQUEST_FRAME_BYTES_MAX) else {
        return;
    };
    let Ok(Some(mut frame)) = frame::take::<RequestHeader>(&mut buffer, prefix) else {
        return;
    };
    let Some(Request::Produce(request)) = frame.header.request else {
        return;
    };
    let bytes: u64 = request.runs.iter().map(|run| u64::from(run.bytes)).sum();
    if request.runs.len() > RUNS_PER_PRODUCE_MAX || bytes != frame.body.len() as u64 {
        return;
    }
    for run in &request.runs {
        let mut bytes = frame.body.split_to(run.bytes as usize);
        check(&run.topic, run.queue, &mut bytes);
    }
    assert!(frame.body.is_empty());
}

/// What is accepted is records of that queue and nothing else, in the number that is said.
fn check(topic: &str, queue: u32, bytes: &mut [u8]) {
    let copy = bytes.to_vec();
    let records = match RecordRun::check(topic, queue, bytes) {
        Ok(run) => {
            assert_eq!(run.bytes(), copy.len());
            run.records()
        }
        Err(error) => {
            assert!(error.to_string().len() < 1000);
            return;
        }
    };
    let (mut rest, mut found) = (&copy[..], 0);
    while !rest.is_empty() {
        let record = RecordView::parse(rest).expect("it was checked");
        assert_eq!((record.topic(), record.queue()), (topic, queue));
        assert!(record.has_checksum() && record.verify_body().is_ok());
        rest = &rest[record.size()..];
        found += 1;
    }
    assert_eq!(found, records);
    assert!(bytes == copy, "a check changes nothing");
}
