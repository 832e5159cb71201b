//! The data plane.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use longwire_proto::ErrorCode;
use longwire_proto::data::{
    AckLevel, Durability, Extent, FetchRequest, FetchResponse, FetchResult, HelloResponse,
    ProduceRequest, ProduceResponse, ProduceResult, RequestHeader, ResponseHeader,
    request_header::Request, response_header::Response,
};
use longwire_proto::frame::{self, Frame, Prefix};
use longwire_proto::limits::REQUEST_FRAME_BYTES_MAX;
use longwire_proto::record::RecordView;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::{Act, State};

pub async fn listen(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        *state.connections.lock() += 1;
        tokio::spawn(serve(stream, state.clone()));
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let (mut read, mut write) = stream.into_split();
    let (answers, mut outgoing) = mpsc::unbounded_channel::<Bytes>();
    // Ends, and with it the connection, when the last sender is gone.
    let writer = tokio::spawn(async move {
        while let Some(bytes) = outgoing.recv().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut buffer = BytesMut::new();
    'frames: loop {
        let frame: Frame<RequestHeader> = loop {
            if let Some(prefix) = Prefix::parse(&buffer, REQUEST_FRAME_BYTES_MAX).unwrap()
                && let Some(frame) = frame::take(&mut buffer, prefix).unwrap()
            {
                break frame;
            }
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break 'frames,
                Ok(_) => {}
            }
        };
        state.speak().await;
        let id = frame.header.correlation_id;
        match frame.header.request.unwrap() {
            Request::Hello(_) => {
                let hello = HelloResponse {
                    protocol_version: 1,
                    max_frame_bytes: REQUEST_FRAME_BYTES_MAX as u32,
                    max_in_flight: 64,
                    ..HelloResponse::default()
                };
                let hello = encode(id, Response::Hello(hello), &[]);
                if state.is_brief() {
                    let farewell = state.farewell.lock().clone();
                    answers.send([hello, farewell].concat().into()).unwrap();
                    // Which ends it once that is written.
                    drop(answers);
                    return writer.await.unwrap();
                }
                answers.send(hello).unwrap();
            }
            Request::Produce(request) => {
                let act = state.on_produce.lock().as_mut().map_or(Act::Serve, |on| on(&request));
                let refusal = |queue| match act {
                    Act::Refuse(code) => Some(code),
                    Act::RefuseSome(reason) => reason(queue),
                    _ => None,
                };
                match act {
                    Act::Drop => break,
                    Act::Hang => continue,
                    Act::Raw(bytes) => {
                        answers.send(bytes).unwrap();
                        continue;
                    }
                    _ => {}
                }
                let response = produce(&state, &request, &frame.body, refusal);
                if matches!(act, Act::ServeAndDrop) {
                    break;
                }
                answers.send(encode(id, Response::Produce(response), &[])).unwrap();
            }
            Request::Fetch(request) => {
                let act = state.on_fetch.lock().as_mut().map_or(Act::Serve, |on| on(&request));
                match act {
                    Act::Drop | Act::ServeAndDrop => break,
                    Act::Hang => {}
                    Act::Raw(bytes) => answers.send(bytes).unwrap(),
                    Act::RefuseSome(_) => panic!("a fetch is refused as a whole"),
                    Act::Refuse(code) => {
                        let results =
                            vec![FetchResult { code: code.number(), ..Default::default() }];
                        let response = Response::Fetch(FetchResponse { results });
                        answers.send(encode(id, response, &[])).unwrap();
                    }
                    Act::Serve => {
                        drop(tokio::spawn(fetch(state.clone(), id, request, answers.clone())))
                    }
                }
            }
        }
    }
    writer.abort();
}

fn produce(
    state: &State,
    request: &ProduceRequest,
    mut body: &[u8],
    refusal: impl Fn(u32) -> Option<ErrorCode>,
) -> ProduceResponse {
    let mut results = Vec::new();
    let mut topic = "";
    for run in &request.runs {
        if !run.topic.is_empty() {
            topic = &run.topic;
        }
        let (mut records, rest) = body.split_at(run.bytes as usize);
        body = rest;
        if let Some(code) = refusal(run.queue) {
            let message = "as the test wants it".into();
            results.push(ProduceResult { code: code.number(), message, ..Default::default() });
            continue;
        }
        let mut extents = Vec::new();
        while !records.is_empty() {
            let view = RecordView::parse(records).unwrap();
            assert_eq!((view.topic(), view.queue()), (topic, run.queue));
            view.verify_body().unwrap();
            let (record, rest) = records.split_at(view.size());
            records = rest;
            let (offset, position) = state.append(topic, run.queue, record.to_vec());
            extents.push(Extent { records: 1, offset, position });
        }
        let level = match request.durability() {
            Durability::Write => AckLevel::Written,
            _ => AckLevel::Flushed,
        };
        results.push(ProduceResult { level: level.into(), extents, ..Default::default() });
    }
    ProduceResponse { results }
}

async fn fetch(
    state: Arc<State>,
    id: u64,
    request: FetchRequest,
    answers: mpsc::UnboundedSender<Bytes>,
) {
    let wait = Duration::from_millis(request.max_wait_ms.into());
    let found = async {
        loop {
            let arrival = state.arrivals.notified();
            let (response, body) = look(&state, &request);
            if !response.results.is_empty() {
                return (response, body);
            }
            tokio::select! {
                () = arrival => {}
                () = answers.closed() => return (response, body),
            }
        }
    };
    let (response, body) = tokio::time::timeout(wait, found).await.unwrap_or_default();
    let _ = answers.send(encode(id, Response::Fetch(response), &body));
}

fn look(state: &State, request: &FetchRequest) -> (FetchResponse, Vec<u8>) {
    let topics = state.topics.lock();
    let retained_from = *state.retained_from.lock();
    let (mut results, mut body) = (Vec::new(), Vec::new());
    let queues = request.topics.iter().flat_map(|t| t.queues.iter().map(move |q| (t, q)));
    for (index, (topic, queue)) in (0..).zip(queues) {
        let records = topics.get(&topic.topic).and_then(|queues| queues.get(queue.queue as usize));
        let Some(records) = records else {
            let code = ErrorCode::UnknownQueue.number();
            results.push(FetchResult { index, code, ..Default::default() });
            continue;
        };
        let max_offset = records.len() as u64;
        let mut result =
            FetchResult { index, min_offset: retained_from, max_offset, ..Default::default() };
        if queue.offset < retained_from || queue.offset > max_offset {
            result.code = ErrorCode::OffsetOutOfRange.number();
            results.push(result);
            continue;
        }
        result.next_offset = queue.offset;
        let before = body.len();
        for record in &records[queue.offset as usize..] {
            let full = body.len() + record.len() > request.max_bytes as usize;
            if full && !body.is_empty() || body.len() - before > queue.max_bytes as usize {
                break;
            }
            let hash = RecordView::parse(record).map_or(0, |view| view.tag_hash());
            if topic.tag_hashes.is_empty() || topic.tag_hashes.contains(&hash) {
                body.extend_from_slice(record);
            }
            result.next_offset += 1;
        }
        result.bytes = (body.len() - before) as u32;
        if result.next_offset > queue.offset {
            results.push(result);
        }
    }
    (FetchResponse { results }, body)
}

pub fn encode(correlation_id: u64, response: Response, body: &[u8]) -> Bytes {
    let header = ResponseHeader { correlation_id, response: Some(response) };
    let head = frame::head(&header, body.len()).unwrap();
    [&head[..], body].concat().into()
}
