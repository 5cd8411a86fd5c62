//! Serving HTTP/1.1 on one accepted stream: the guard in front of hyper, and a drain that lets requests finish.

use crate::drain::Draining;
use crate::framing::{Limits, PassThrough, RequestGuard};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};

/// Serves requests on `stream` until it ends or the drain starts, and then finishes what is under way.
///
/// `handle` is given each request, the refused ones too (see [`crate::framing::refusal`]), and the switch that it must
/// open before it answers 101.
pub async fn http1<S, H, F, B>(stream: S, limits: &Arc<Limits>, mut draining: Draining, handle: H)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>, PassThrough) -> F,
    F: Future<Output = Response<B>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (io, pass_through) = RequestGuard::new(stream, Arc::clone(limits));
    let service = service_fn(|request| {
        let answer = handle(request, pass_through.clone());
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = limits
        .server_builder()
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = draining.started() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        // Peers break off all the time; who wants to see it asks for it.
        tracing::debug!(%error, "connection ended");
    }
}
