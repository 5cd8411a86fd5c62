//! The app of a case.

use crate::case::{App, hello};
use sandgate_tests::{RecordingApp, Request, Step, closed_port};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

/// What holds the app's port.
enum Holder {
    Recording(RecordingApp),
    /// One that may not be there yet.
    Late(Arc<OnceLock<RecordingApp>>),
    /// Nobody else gets the port.
    Closed {
        _socket: TcpSocket,
    },
    Full {
        _listener: TcpListener,
        _queued: Vec<TcpStream>,
    },
}

/// An app that runs.
pub(crate) struct RunningApp {
    pub(crate) ip: String,
    pub(crate) port: u16,
    holder: Holder,
}

/// How long nobody listens where an app is late.
const LATE: Duration = Duration::from_millis(300);
/// Between the pieces of an answer: far less than the router of that case waits, which is 3 s.
const PAUSE: Duration = Duration::from_millis(300);
/// So many pieces take longer.
const PIECES: usize = 12;

impl App {
    /// Starts it.
    pub(crate) async fn start(&self) -> RunningApp {
        let holder = match self.clone() {
            Self::Answers(answer) => Holder::Recording(RecordingApp::answering(Step::Answer(answer.into())).await),
            Self::Closes(answer) => Holder::Recording(RecordingApp::answering(Step::Close(answer.into())).await),
            Self::Hangs => Holder::Recording(RecordingApp::start(|_| Step::Wait).await),
            Self::AnswersHeads(answer) => Holder::Recording(on_heads(Step::Answer(answer.into())).await),
            Self::Drops => Holder::Recording(on_heads(Step::Close(Vec::new())).await),
            Self::Switches(answer, reply) => Holder::Recording(switching(answer, reply).await),
            Self::Paced => Holder::Recording(RecordingApp::serving(answer_in_pieces).await),
            Self::OnDefaultPort => return on_default_port().await,
            Self::Refuses => return without_listener(),
            Self::Late => return late(),
            Self::Unheard => return unheard().await,
        };
        let Holder::Recording(app) = &holder else {
            unreachable!()
        };
        RunningApp::at(app.port(), holder)
    }
}

impl RunningApp {
    fn at(port: u16, holder: Holder) -> Self {
        let ip = "127.0.0.1".into();
        Self { ip, port, holder }
    }

    /// The requests that came, whole or not.
    pub(crate) fn requests(&self) -> Vec<Request> {
        match &self.holder {
            Holder::Recording(app) => app.requests(),
            Holder::Late(app) => app.get().map(RecordingApp::requests).unwrap_or_default(),
            Holder::Closed { .. } | Holder::Full { .. } => Vec::new(),
        }
    }
}

/// Does `step` whenever a head came.
async fn on_heads(step: Step) -> RecordingApp {
    RecordingApp::start(move |bytes| {
        let headed = bytes.windows(4).any(|end| end == b"\r\n\r\n");
        if headed { step.clone() } else { Step::Wait }
    })
    .await
}

async fn switching(answer: String, reply: &'static str) -> RecordingApp {
    RecordingApp::start(move |bytes| {
        if bytes.ends_with(b"\r\n\r\n") {
            Step::Answer(answer.clone().into())
        } else if bytes.starts_with(b"GET ") {
            Step::Wait
        } else {
            Step::Answer(reply.into())
        }
    })
    .await
}

async fn answer_in_pieces(mut stream: TcpStream) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read_buf(&mut request).await, Ok(1..)) {
            return;
        }
    }
    let _ = stream
        .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    for _ in 0..PIECES {
        let _ = stream.write_all(b"1\r\nx\r\n").await;
        sleep(PAUSE).await;
    }
    let _ = stream.write_all(b"0\r\n\r\n").await;
    // The client decides when the connection ends.
    let _ = stream.read_buf(&mut request).await;
}

/// On an address of loopback that nobody else uses, since the port is one that somebody may.
async fn on_default_port() -> RunningApp {
    static COUNT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = u16::try_from(std::process::id() % 60_000).unwrap().to_be_bytes();
    let ip = format!("127.{}.{low}.{}", high.max(1), COUNT.fetch_add(1, Ordering::Relaxed));
    let listener = TcpListener::bind((ip.as_str(), 8888)).await.unwrap();
    let app = RecordingApp::answering_at(listener, Step::Answer(hello().into()));
    let holder = Holder::Recording(app);
    RunningApp { ip, port: 8888, holder }
}

fn without_listener() -> RunningApp {
    let (socket, port) = closed_port();
    RunningApp::at(port, Holder::Closed { _socket: socket })
}

fn late() -> RunningApp {
    let (socket, port) = closed_port();
    let app = Arc::new(OnceLock::new());
    let slot = Arc::clone(&app);
    tokio::spawn(async move {
        sleep(LATE).await;
        let app = RecordingApp::answering_at(socket.listen(16).unwrap(), Step::Answer(hello().into()));
        let _ = slot.set(app);
    });
    RunningApp::at(port, Holder::Late(app))
}

/// A full queue of connections that nobody takes: the kernel drops further attempts.
async fn unheard() -> RunningApp {
    let (socket, port) = closed_port();
    let listener = socket.listen(1).unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(100), TcpStream::connect(("127.0.0.1", port))).await {
        queued.push(stream.unwrap());
    }
    let holder = Holder::Full {
        _listener: listener,
        _queued: queued,
    };
    RunningApp::at(port, holder)
}
