//! An API server that reviews callers as the test says, and nothing else.

use crate::folder::Folder;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::future::ready;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// An answer on its way.
pub type Coming = Pin<Box<dyn Future<Output = (u16, Value)> + Send>>;

type Script = dyn Fn(&Value) -> Coming + Send + Sync;

/// What came, and how much of it at once.
#[derive(Debug, Default)]
struct Seen {
    reviews: Vec<Value>,
    under_way: usize,
    most_under_way: usize,
}

/// A server that answers each review by a script. It ends when dropped.
pub struct ApiServer {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    serving: JoinHandle<()>,
    folder: Folder,
}

impl ApiServer {
    /// Starts one whose script is asked about each review, as it was sent.
    pub async fn start(script: impl Fn(&Value) -> Coming + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::default();
        let serving = tokio::spawn(accept(listener, Arc::clone(&seen), Arc::new(script)));
        let folder = Folder::new();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        folder.rename_over("kubeconfig", config.to_string());
        Self {
            address,
            seen,
            serving,
            folder,
        }
    }

    /// Starts one that answers at once.
    pub async fn answering(script: impl Fn(&Value) -> (u16, Value) + Send + Sync + 'static) -> Self {
        Self::start(move |review| Box::pin(ready(script(review)))).await
    }

    /// The flag that leads a router there.
    pub fn flag(&self) -> String {
        format!("--kubeconfig={}", self.folder.path("kubeconfig").display())
    }

    /// The reviews that came, since it was last asked.
    pub fn seen(&self) -> Vec<Value> {
        std::mem::take(&mut self.seen.lock().unwrap().reviews)
    }

    /// How many reviews were under way at once at most.
    pub fn most_under_way(&self) -> usize {
        self.seen.lock().unwrap().most_under_way
    }

    /// How many are under way.
    pub fn under_way(&self) -> usize {
        self.seen.lock().unwrap().under_way
    }

    /// Goes away: nobody listens there any more, and what was open is closed.
    pub async fn stop(&mut self) {
        self.serving.abort();
        let _ = (&mut self.serving).await;
        assert!(tokio::net::TcpStream::connect(self.address).await.is_err());
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn accept(listener: TcpListener, seen: Arc<Mutex<Seen>>, script: Arc<Script>) {
    // They end with this.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
        let answer = service_fn(move |request: http::Request<Incoming>| {
            let (seen, script) = (Arc::clone(&seen), Arc::clone(&script));
            async move { Ok::<_, Infallible>(review(request, &seen, &*script).await) }
        });
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}

/// One of those under way, until its answer or the end of its connection.
struct UnderWay<'a>(&'a Mutex<Seen>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap().under_way -= 1;
    }
}

async fn review(request: http::Request<Incoming>, seen: &Mutex<Seen>, script: &Script) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    let expected = match review["kind"].as_str() {
        Some("TokenReview") => "/apis/authentication.k8s.io/v1/tokenreviews",
        Some("SubjectAccessReview") => "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        other => panic!("{other:?}"),
    };
    assert_eq!(path, expected);
    let answer = {
        let mut seen = seen.lock().unwrap();
        seen.reviews.push(review.clone());
        seen.under_way += 1;
        seen.most_under_way = seen.most_under_way.max(seen.under_way);
        script(&review)
    };
    let _one = UnderWay(seen);
    let (status, mut answer) = answer.await;
    if status == 201 {
        let given = answer;
        answer = review;
        answer["status"] = given;
    }
    let response = Response::builder()
        .status(StatusCode::from_u16(status).unwrap())
        .header("content-type", "application/json");
    response.body(Full::from(answer.to_string())).unwrap()
}

/// The answer to a review of a token that is this user's, in these groups.
pub fn user(name: &str, groups: &[&str]) -> (u16, Value) {
    let user = json!({"username": name, "uid": "u-1", "groups": groups});
    (201, json!({"authenticated": true, "user": user}))
}

/// The answer to a review of a token that is nobody's.
pub fn nobody() -> (u16, Value) {
    (201, json!({"authenticated": false, "error": "invalid bearer token"}))
}

/// An answer as the API server words its refusals.
pub fn failure(code: u16, message: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Reason",
        "message": message, "code": code,
    });
    (code, status)
}
