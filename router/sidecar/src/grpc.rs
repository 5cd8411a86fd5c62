//! The health check of gRPC (`grpc.health.v1.Health/Check`). Hides how it is asked, and which answer means that the server
//! serves.
//!
//! Heads and trailers are not read: a call that fails has no message, and the message alone says whether the service serves.
//! What the app could make of a loose reading is a wrong word about its own health, which it can have cheaper.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::{Method, Request, Uri};
use http_body_util::BodyExt;
use sandgate_mesh::body::Upload;
use sandgate_mesh::exchange::{ExchangeError, Upstream};
use sandgate_mesh::framing::Limits;
use sandgate_mesh::http2::Reset;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

const PATH: &str = "/grpc.health.v1.Health/Check";
/// The longest name of a service whose length is one byte.
const MAX_SERVICE: usize = 127;
/// The only spelling of `HealthCheckResponse { status: SERVING }`: not compressed, two bytes long, field 1 is 1.
const SERVING: [u8; 7] = [0, 0, 0, 0, 2, 0x08, 1];

/// Why a server isn't known to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotServing {
    #[error("the connection broke, or is not HTTP/2")]
    Broken,
    #[error("the server refused the health check; it may have no health service, or not know the service asked for")]
    Refused,
    #[error("the service is not serving")]
    Health,
}

impl NotServing {
    /// What an error of the exchange means: a stream that the server reset is its answer.
    fn behind(error: &(dyn Error + 'static)) -> Self {
        Reset::behind(error).map_or(Self::Broken, |_| Self::Refused)
    }
}

/// Asks the server at the other end of `stream`, which is called `authority`, whether `service` (empty: the server as a whole)
/// serves. Its answer is bounded as `limits` say, and begins within `wait`; the caller bounds the rest.
pub(crate) async fn check<S>(
    stream: S,
    limits: &Arc<Limits>,
    (authority, service): (&str, &str),
    wait: Duration,
) -> Result<(), NotServing>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let question = question(authority, service).ok_or(NotServing::Broken)?;
    let upstream = Upstream::start_http2(stream, limits).await;
    let mut upstream = upstream.map_err(|error| NotServing::behind(&error))?;
    let answer = upstream.send(question, wait).await;
    let answer = answer.map_err(|error: ExchangeError| NotServing::behind(&error))?;
    let mut body = answer.into_body();
    let mut message = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| NotServing::behind(&error))?;
        message.extend_from_slice(frame.data_ref().map_or(&[], Bytes::as_ref));
        if message.len() > SERVING.len() {
            return Err(NotServing::Health);
        }
    }
    match message.as_slice() {
        [] => Err(NotServing::Refused),
        answer if answer == SERVING => Ok(()),
        _ => Err(NotServing::Health),
    }
}

/// The call. `None` if a text is none that a call can have.
fn question(authority: &str, service: &str) -> Option<Box<Request<Upload>>> {
    let body = Upload::own(message(service)?, Instant::now());
    let mut question = Box::new(Request::new(body));
    *question.method_mut() = Method::POST;
    *question.uri_mut() = Uri::from_static(PATH);
    for (name, value) in [
        (HOST, HeaderValue::from_str(authority).ok()?),
        (CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
        (USER_AGENT, HeaderValue::from_static("kube-probe/sandgate")),
    ] {
        question.headers_mut().insert(name, value);
    }
    Some(question)
}

/// gRPC's length of the message, and `HealthCheckRequest { service }`: a field that is empty isn't written.
fn message(service: &str) -> Option<Bytes> {
    let length = u8::try_from(service.len()).ok();
    let message = match length.filter(|_| service.len() <= MAX_SERVICE)? {
        0 => vec![0; 5],
        length => [&[0, 0, 0, 0, length + 2, 0x0a, length], service.as_bytes()].concat(),
    };
    Some(message.into())
}

#[cfg(test)]
#[path = "grpc_tests.rs"]
mod tests;
