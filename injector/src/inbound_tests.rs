use super::*;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::iter;
use tokio::task::JoinSet;

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

fn soon() -> Instant {
    Instant::now() + CALL_TIME
}

fn chunks(sizes: &[usize]) -> impl Stream<Item = Result<Bytes, warp::Error>> + use<> {
    let chunks: Vec<_> = sizes.iter().map(|size| Ok(Bytes::from(vec![b' '; *size]))).collect();
    stream::iter(chunks)
}

#[tokio::test]
async fn a_body_is_read_whole_up_to_the_limit() {
    let bodies = Bodies::new();
    let body = bodies
        .read(soon(), Some(&JSON), chunks(&[1, MAX_BODY - 2, 1]))
        .await
        .unwrap();
    assert_eq!(body.bytes().len(), MAX_BODY);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_takes_no_memory() {
    let bodies = Bodies::new();
    let refused = bodies
        .read(soon(), Some(&JSON), chunks(&[MAX_BODY, 1]))
        .await
        .err()
        .unwrap();
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!((bodies.ordinary.bytes(), bodies.long.bytes()), (0, 0));
}

#[tokio::test]
async fn a_sender_that_never_stops_is_not_listened_to_for_ever() {
    let endless = stream::repeat_with(|| Ok(Bytes::from(vec![b' '; 1 << 16])));
    let refused = Bodies::new().read(soon(), Some(&JSON), endless).await.err().unwrap();
    assert_eq!(refused.reason(), "too_long");
}

/// A body that has come but for its last byte.
fn stalling(size: usize) -> impl Stream<Item = Result<Bytes, warp::Error>> {
    chunks(&[size - 1]).chain(stream::pending())
}

#[tokio::test(start_paused = true)]
async fn senders_that_stall_keep_out_neither_ordinary_nor_long_reviews() {
    let bodies = Arc::new(Bodies::new());
    let deadline = soon();
    let mut senders = JoinSet::new();
    for size in iter::repeat_n(MAX_BODY, 24).chain(iter::repeat_n(MAX_ORDINARY, 2 * ARRIVING)) {
        let bodies = Arc::clone(&bodies);
        senders.spawn(async move { bodies.read(deadline, Some(&JSON), stalling(size)).await });
    }
    // Each gets as far as it can.
    tokio::time::sleep(Duration::from_millis(1)).await;
    for size in [10_000, MAX_ORDINARY, MAX_ORDINARY + 1, MAX_BODY] {
        let body = bodies.read(soon(), Some(&JSON), chunks(&[size])).await;
        assert_eq!(body.unwrap().bytes().len(), size);
        assert!(bodies.ordinary.bytes() <= ORDINARY.bytes && bodies.long.bytes() <= LONG.bytes);
    }
    let ended = senders.join_all().await;
    let reasons = |wanted| {
        ended
            .iter()
            .filter(move |end| end.as_ref().is_err_and(|error| error.reason() == wanted))
    };
    assert!(reasons("busy").count() > 1000, "the oldest make room");
    assert!(reasons("too_slow").count() > 100, "and the youngest have their time");
}

#[tokio::test]
async fn long_reviews_take_no_memory_of_ordinary_ones() {
    let bodies = Bodies::new();
    let mut whole = Vec::new();
    for _ in 0..LONG.bytes / MAX_BODY {
        whole.push(bodies.read(soon(), Some(&JSON), chunks(&[MAX_BODY])).await.unwrap());
    }
    let full = bodies.read(soon(), Some(&JSON), chunks(&[MAX_BODY])).await;
    assert_eq!(full.unwrap_err().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(bodies.read(soon(), Some(&JSON), chunks(&[MAX_ORDINARY])).await.is_ok());
    drop(whole);
    assert!(bodies.read(soon(), Some(&JSON), chunks(&[MAX_BODY])).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_refused_before_the_api_server_gives_up() {
    let stalled = chunks(&[1]).chain(stream::pending());
    let started = Instant::now();
    let refused = Bodies::new().read(soon(), Some(&JSON), stalled).await.err().unwrap();
    assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn only_json_is_read() {
    for kind in [
        "text/plain",
        "application/jsonx",
        "",
        "application/yaml; application/json",
    ] {
        let kind = HeaderValue::from_static(kind);
        let refused = Bodies::new()
            .read(soon(), Some(&kind), chunks(&[1]))
            .await
            .err()
            .unwrap();
        assert_eq!(refused.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind:?}");
    }
    assert_eq!(
        Bodies::new()
            .read(soon(), None, chunks(&[1]))
            .await
            .err()
            .unwrap()
            .reason(),
        "content_type"
    );
}
