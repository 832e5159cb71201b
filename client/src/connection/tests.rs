use longwire_proto::ErrorCode;
use longwire_proto::data::{ErrorResponse, FetchRequest, FetchResponse};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::*;

/// A connection, and the broker's end of it.
async fn connected() -> (Connection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let broker = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let hello = HelloResponse {
            protocol_version: limits::PROTOCOL_VERSION,
            ..HelloResponse::default()
        };
        stream.read_buf(&mut Vec::with_capacity(4096)).await.unwrap();
        stream.write_all(&answer(1, Response::Hello(hello), 0)).await.unwrap();
        stream
    };
    let alone = Session::none();
    let opening = Connection::open(&address, "test", &alone, Duration::from_secs(10));
    let (connection, broker) = tokio::join!(opening, broker);
    (connection.unwrap(), broker)
}

/// An answer without its body.
fn answer(correlation_id: u64, response: Response, body_bytes: usize) -> Bytes {
    frame::head(&ResponseHeader { correlation_id, response: Some(response) }, body_bytes).unwrap()
}

struct Told(oneshot::Sender<Result<Answer, Error>>);

impl Reply for Told {
    fn complete(self: Box<Self>, answer: Result<Answer, Error>) {
        let _ = self.0.send(answer);
    }
}

fn submit(connection: &Connection, body: Vec<Bytes>) -> oneshot::Receiver<Result<Answer, Error>> {
    let (told, answered) = oneshot::channel();
    let request = Request::Fetch(FetchRequest::default());
    connection.submit(request, body.into(), Box::new(Told(told)));
    answered
}

/// Does `step` until the broker counts as having been heard later than at `since`.
async fn until_heard(connection: &Connection, since: Instant, mut step: impl AsyncFnMut()) {
    let heard = async {
        while connection.silent_since().unwrap() <= since {
            step().await;
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), heard).await.expect("is never heard");
}

#[tokio::test]
async fn a_broker_that_sends_an_answer_slowly_is_not_silent() {
    let (connection, mut broker) = connected().await;
    assert_eq!(connection.silent_since(), None);
    let _oldest = submit(&connection, Vec::new());
    let answered = submit(&connection, Vec::new());
    let since = connection.silent_since().unwrap();
    let body_bytes = 1 << 20;
    let head = answer(3, Response::Fetch(FetchResponse::default()), body_bytes);
    broker.write_all(&head).await.unwrap();
    let mut sent = 0;
    let step = async || {
        broker.write_all(&[0]).await.unwrap();
        sent += 1;
    };
    until_heard(&connection, since, step).await;
    assert!(sent < body_bytes);
    broker.write_all(&vec![0; body_bytes - sent]).await.unwrap();
    answered.await.unwrap().unwrap();
    assert_eq!(connection.oldest_unanswered(), Some(since), "the first is still unanswered");
}

#[tokio::test]
async fn a_broker_that_takes_a_request_slowly_is_not_silent() {
    let (connection, mut broker) = connected().await;
    let _unanswered = submit(&connection, vec![Bytes::from_static(&[0; 1 << 20]); 64]);
    let since = connection.silent_since().unwrap();
    let mut buffer = vec![0; 1 << 20];
    let step = async || {
        broker.read_exact(&mut buffer).await.unwrap();
    };
    until_heard(&connection, since, step).await;
}

#[tokio::test]
async fn a_body_holds_on_to_no_more_than_itself() {
    let (connection, mut broker) = connected().await;
    let answered = [(); 3].map(|()| submit(&connection, Vec::new()));
    let response = || Response::Fetch(FetchResponse::default());
    let frames = [2, 3, 4].map(|id| [&answer(id, response(), 100)[..], &[0; 100]].concat());
    broker.write_all(&frames.concat()).await.unwrap();
    for answered in answered {
        let body = answered.await.unwrap().unwrap().body;
        assert!(body.len() == 100 && body.is_unique());
    }
}

#[tokio::test]
async fn a_request_that_never_left_can_be_sent_again_whatever_ended_the_connection() {
    let (connection, mut broker) = connected().await;
    let sent = submit(&connection, Vec::new());
    let code = ErrorCode::FrameTooLarge.number();
    let refusal = Response::Error(ErrorResponse { code, message: "too large".into() });
    broker.write_all(&answer(0, refusal, 0)).await.unwrap();
    let error = sent.await.unwrap().unwrap_err();
    assert!(error.outcome_unknown() && !error.is_retriable(), "{error}");
    assert!(connection.is_closed());
    let error = submit(&connection, Vec::new()).await.unwrap().unwrap_err();
    assert!(!error.outcome_unknown() && error.is_retriable(), "{error}");
}

#[tokio::test]
async fn only_a_request_whose_successor_is_answered_is_overtaken_however_old_it_is() {
    let (connection, mut broker) = connected().await;
    let oldest = submit(&connection, Vec::new());
    let later = submit(&connection, Vec::new());
    let overtaken = |by| connection.is_overtaken(by);
    assert!(!overtaken(Duration::ZERO), "nothing is answered");
    let fetched = |id| answer(id, Response::Fetch(FetchResponse::default()), 0);
    broker.write_all(&fetched(3)).await.unwrap();
    later.await.unwrap().unwrap();
    assert!(overtaken(Duration::ZERO) && !overtaken(Duration::from_secs(600)));
    broker.write_all(&fetched(2)).await.unwrap();
    oldest.await.unwrap().unwrap();
    let newest = submit(&connection, Vec::new());
    assert!(!overtaken(Duration::ZERO), "what came before it is answered");
    drop(newest);
}
