//! An app that records every byte it gets and answers by a script.

use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// What the app does next.
#[derive(Debug, Clone)]
pub enum Step {
    /// Reads on.
    Wait,
    /// Writes this and reads on; the script then sees only what comes afterwards.
    Answer(Vec<u8>),
    /// Writes this and closes.
    Close(Vec<u8>),
    /// Writes the first, then the second again and again for as long as somebody takes it.
    Endless(Vec<u8>, Vec<u8>),
}

/// A request as a simple server reads it.
#[derive(Debug, Clone)]
pub struct Request {
    /// From the request line to the empty line.
    pub head: String,
    /// The body, still chunked if it came so.
    pub body: Vec<u8>,
    /// Whether the whole body came.
    pub complete: bool,
}

impl Request {
    /// The body without its chunks' frames; trailers are left out.
    pub fn data(&self) -> Vec<u8> {
        if !self
            .head
            .to_ascii_lowercase()
            .contains("\r\ntransfer-encoding: chunked\r\n")
        {
            return self.body.clone();
        }
        let (mut rest, mut data) = (self.body.as_slice(), Vec::new());
        while let Some(line) = find(rest, b"\r\n") {
            let size = std::str::from_utf8(&rest[..line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            if size == 0 {
                break;
            }
            data.extend_from_slice(&rest[line + 2..line + 2 + size]);
            rest = &rest[line + 4 + size..];
        }
        data
    }
}

type Script = dyn Fn(&[u8]) -> Step + Send + Sync;

/// The app.
pub struct RecordingApp {
    port: u16,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl RecordingApp {
    /// Starts an app whose script is asked whenever bytes came, with all of that connection since its last answer.
    pub async fn start(script: impl Fn(&[u8]) -> Step + Send + Sync + 'static) -> Self {
        Self::listening(TcpListener::bind("127.0.0.1:0").await.unwrap(), script)
    }

    fn listening(listener: TcpListener, script: impl Fn(&[u8]) -> Step + Send + Sync + 'static) -> Self {
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (record, script): (_, Arc<Script>) = (Arc::clone(&seen), Arc::new(script));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = {
                    let mut seen = record.lock().unwrap();
                    seen.push(Vec::new());
                    seen.len() - 1
                };
                tokio::spawn(serve(stream, number, Arc::clone(&record), Arc::clone(&script)));
            }
        });
        Self { port, seen }
    }

    /// An app that hands each connection to `serve` and records nothing.
    pub async fn serving<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        Self {
            port,
            seen: Arc::default(),
        }
    }

    /// An app that does `step` for each complete request.
    pub async fn answering(step: Step) -> Self {
        Self::answering_at(TcpListener::bind("127.0.0.1:0").await.unwrap(), step)
    }

    /// The same with a listener that is there already.
    pub fn answering_at(listener: TcpListener, step: Step) -> Self {
        Self::listening(listener, move |bytes| match requests(bytes).first() {
            Some(request) if request.complete => step.clone(),
            _ => Step::Wait,
        })
    }

    /// An app that answers each complete request with 200.
    pub async fn polite() -> Self {
        Self::answering(Step::Answer(ok("hello"))).await
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The bytes of each connection so far.
    pub fn connections(&self) -> Vec<Vec<u8>> {
        self.seen.lock().unwrap().clone()
    }

    /// The requests so far, whole or not.
    pub fn requests(&self) -> Vec<Request> {
        self.connections().iter().flat_map(|bytes| requests(bytes)).collect()
    }

    /// Their heads.
    pub fn heads(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.head).collect()
    }

    /// The only request.
    pub fn only_request(&self) -> Request {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }

    /// The only request, which is then forgotten.
    pub fn take_only_request(&self) -> Request {
        let request = self.only_request();
        self.forget();
        request
    }

    /// Forgets what came so far.
    pub fn forget(&self) {
        self.seen.lock().unwrap().iter_mut().for_each(Vec::clear);
    }

    /// Fails unless not a byte came.
    pub fn assert_untouched(&self, context: &str) {
        let seen: Vec<u8> = self.connections().concat();
        assert!(
            seen.is_empty(),
            "{context}: the app got {:?}",
            String::from_utf8_lossy(&seen)
        );
    }
}

async fn serve(mut stream: TcpStream, number: usize, record: Arc<Mutex<Vec<Vec<u8>>>>, script: Arc<Script>) {
    let mut unanswered = Vec::new();
    loop {
        let start = unanswered.len();
        if !matches!(stream.read_buf(&mut unanswered).await, Ok(1..)) {
            return;
        }
        record.lock().unwrap()[number].extend_from_slice(&unanswered[start..]);
        match script(&unanswered) {
            Step::Wait => {}
            Step::Answer(bytes) => {
                unanswered.clear();
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Step::Close(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Step::Endless(first, again) => {
                let mut result = stream.write_all(&first).await;
                while result.is_ok() {
                    result = stream.write_all(&again).await;
                }
                return;
            }
        }
    }
}

/// No app: nobody else gets the port, and whoever comes is refused for as long as the socket doesn't listen.
pub fn closed_port() -> (TcpSocket, u16) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// A 200 with a body.
pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// Splits bytes into requests.
fn requests(mut bytes: &[u8]) -> Vec<Request> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let end = find(bytes, b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let headed = head.ends_with("\r\n\r\n");
        let rest = &bytes[end..];
        let fields = head.to_ascii_lowercase();
        let length = if !headed {
            None
        } else if fields.contains("\r\ntransfer-encoding: chunked\r\n") {
            chunked_length(rest)
        } else {
            let declared = fields.split("\r\ncontent-length: ").nth(1);
            let declared = declared.map_or(0, |text| text.split("\r\n").next().unwrap().parse().unwrap());
            (rest.len() >= declared).then_some(declared)
        };
        let taken = length.unwrap_or(rest.len());
        found.push(Request {
            head,
            body: rest[..taken].to_vec(),
            complete: headed && length.is_some(),
        });
        bytes = &rest[taken..];
    }
    found
}

/// How long a chunked body is; `None` if it isn't all there.
fn chunked_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = find(&bytes[at..], b"\r\n")?;
        let size = std::str::from_utf8(&bytes[at..at + line]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        at += line + 2;
        if size == 0 {
            let trailers = find(&bytes[at - 2..], b"\r\n\r\n")?;
            return Some(at + trailers + 2);
        }
        at += size + 2;
        if at > bytes.len() {
            return None;
        }
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
