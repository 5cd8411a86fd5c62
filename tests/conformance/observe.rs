//! What comes of a case: the answer, what the app got, what the router says of it.

use crate::answer::{Answer, parse};
use crate::app::RunningApp;
use crate::case::{Case, Listener, Talk};
use crate::check::Check;
use crate::routers::Running;
use sandgate_tests::processes::Left;
use sandgate_tests::{PATIENCE, Request, send};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What came of a case.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// What the router left behind, if it ended by itself.
    pub(crate) left: Option<Left>,
    /// The answer that the checks are about.
    pub(crate) answer: Option<Answer>,
    /// Whether another request was served on the connection afterwards; `None` where nobody tried.
    pub(crate) stays: Option<bool>,
    /// What the app got.
    pub(crate) requests: Vec<Request>,
    /// What is scraped afterwards.
    pub(crate) metrics: String,
    /// Standard error.
    pub(crate) log: String,
    /// The path of the request, by which its line in the log is found.
    pub(crate) path: String,
    pub(crate) ip: String,
    pub(crate) port: u16,
}

/// How long a router may leave open whether it serves on.
const DOUBT: Duration = Duration::from_secs(3);
/// A request that either router answers itself.
const PROBE: &str = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";

/// Sends what a case says to a router, and looks at everything afterwards.
pub(crate) async fn observe(case: &Case, router: &Running) -> Seen {
    let app = case.app.start().await;
    let address = match case.listener {
        Listener::Http => router.http,
        Listener::Health => router.health,
        Listener::Metrics => router.metrics,
    };
    let mut client = Client::connect(address, case, &app).await;
    client.talk().await;
    let answer = client.answer(case.nth).await;
    let checks = |wanted: fn(&Check) -> bool| case.checks().any(wanted);
    let kept = matches!(&answer, Some(answer) if answer.whole && answer.status != 101);
    // The second request is read when all is written down about the first.
    let stays = if checks(Check::needs_probe) {
        Some(kept && client.is_served_on(case.nth + 1).await)
    } else {
        None
    };
    let path = path(&client.sent).to_owned();
    let mut seen = Seen {
        answer,
        stays,
        ip: app.ip.clone(),
        port: app.port,
        ..Seen::default()
    };
    if checks(Check::needs_metrics) {
        seen.metrics = scrape(router.metrics).await;
    }
    if checks(Check::needs_log) {
        let logged = async {
            while access_line(&router.process.stderr(), &path).is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // Where it doesn't come, that is what a check is about.
        let _ = timeout(DOUBT, logged).await;
    }
    seen.log = router.process.stderr();
    seen.requests = app.requests();
    seen.path = path;
    seen
}

/// All metrics. Theirs sends many in chunks, which may end anywhere.
async fn scrape(address: SocketAddr) -> String {
    let request = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let bytes = send(address, request).await;
    let answer = parse(bytes.as_bytes(), false, true).into_iter().next();
    answer
        .map(|answer| String::from_utf8_lossy(&answer.body).into_owned())
        .unwrap_or_default()
}

/// The path of a request, without its query.
fn path(request: &str) -> &str {
    let target = request.split(' ').nth(1).unwrap_or_default();
    target.split('?').next().unwrap_or_default()
}

/// The line that a log has of the request for a path, as either router writes it.
pub(crate) fn access_line(log: &str, path: &str) -> Option<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut lines = lines.filter(|line| line["duration_ms"].is_number() && line["status"].is_number());
    lines.find(|line| line["path"] == path)
}

struct Client {
    stream: TcpStream,
    talk: Vec<Talk>,
    /// The first that was sent.
    sent: String,
    read: Vec<u8>,
    ended: bool,
}

impl Client {
    async fn connect(address: SocketAddr, case: &Case, app: &RunningApp) -> Self {
        let port = app.port.to_string();
        let fill = |text: &str| text.replace("@PORT@", &port).replace("@IP@", &app.ip);
        let talk = case.talk.iter().map(|step| match step {
            Talk::Send(text) => Talk::Send(fill(text)),
            other => other.clone(),
        });
        let talk: Vec<Talk> = talk.collect();
        let sent = match talk.first() {
            Some(Talk::Send(text)) => text.clone(),
            _ => String::new(),
        };
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            talk,
            sent,
            read: Vec::new(),
            ended: false,
        }
    }

    async fn talk(&mut self) {
        let mut from = 0;
        for step in std::mem::take(&mut self.talk) {
            match step {
                // A router that refuses the first bytes may be gone before the last ones.
                Talk::Send(text) => drop(self.stream.write_all(text.as_bytes()).await),
                Talk::Stop => drop(self.stream.shutdown().await),
                Talk::Await(text) => from = self.until(text.as_bytes(), from).await,
            }
        }
    }

    /// Reads until `text` has come behind `from`, and returns where it ends. Where it doesn't come, checks say so.
    async fn until(&mut self, text: &[u8], from: usize) -> usize {
        let reading = async {
            loop {
                let rest = &self.read[from..];
                if let Some(at) = rest.windows(text.len()).position(|window| window == text) {
                    return from + at + text.len();
                }
                if self.ended {
                    return self.read.len();
                }
                self.read_more().await;
            }
        };
        timeout(PATIENCE, reading).await.unwrap_or(from)
    }

    async fn read_more(&mut self) {
        // A reset is an end, too.
        self.ended |= !matches!(self.stream.read_buf(&mut self.read).await, Ok(1..));
    }

    /// The answer of this number, counted from 0: whole, or as far as it came.
    async fn answer(&mut self, number: usize) -> Option<Answer> {
        let reading = async {
            loop {
                let found = self.answers().into_iter().nth(number);
                if self.ended || found.as_ref().is_some_and(|answer| answer.whole) {
                    return found;
                }
                self.read_more().await;
            }
        };
        if let Ok(found) = timeout(PATIENCE, reading).await {
            return found;
        }
        self.answers().into_iter().nth(number)
    }

    fn answers(&self) -> Vec<Answer> {
        parse(&self.read, self.sent.starts_with("HEAD "), self.ended)
    }

    /// Whether a further request is answered, behind `from` answers and perhaps more that nobody asked for.
    async fn is_served_on(&mut self, from: usize) -> bool {
        if self.stream.write_all(PROBE.as_bytes()).await.is_err() {
            return false;
        }
        let probed = async {
            loop {
                let mut later = self.answers().into_iter().skip(from);
                if later.any(|answer| answer.body == b"{\"status\":\"ok\"}") {
                    return true;
                }
                if self.ended {
                    return false;
                }
                self.read_more().await;
            }
        };
        timeout(DOUBT, probed).await.unwrap_or(false)
    }
}
