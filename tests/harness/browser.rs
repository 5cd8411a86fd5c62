//! As much of a browser as routing by URL concerns: it follows redirects, keeps cookies and opens WebSockets, and can set
//! no routing headers. And an app for its WebSockets.

use crate::{PATIENCE, TOKEN, field, send, status};
use futures_util::{SinkExt, StreamExt};
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async, client_async};

/// A browser that has the router's token and goes to one host.
#[derive(Debug)]
pub struct Browser {
    router: SocketAddr,
    host: String,
    cookies: Vec<Cookie>,
    answers: Vec<String>,
}

#[derive(Debug)]
struct Cookie {
    pair: String,
    path: String,
}

impl Browser {
    /// A browser to which the router is `host`.
    pub fn new(router: SocketAddr, host: &str) -> Self {
        Self {
            router,
            host: host.into(),
            cookies: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// Opens a path, follows redirects, and returns the path it ends at with the last answer.
    pub async fn open(&mut self, path: &str) -> (String, String) {
        let mut path = path.to_owned();
        for _ in 0..10 {
            let answer = self.get(&path).await;
            let Some(location) = field(&answer, "location").first().copied().map(String::from) else {
                return (path, answer);
            };
            path = self.resolve(&location, &path);
        }
        panic!("too many redirects, now to {path}");
    }

    async fn get(&mut self, path: &str) -> String {
        let cookies = match self.cookies_for(path) {
            none if none.is_empty() => none,
            some => format!("Cookie: {some}\r\n"),
        };
        let host = &self.host;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n{cookies}Connection: close\r\n\r\n"
        );
        let answer = send(self.router, request).await;
        assert!((200..400).contains(&status(&answer)), "{path}: {answer}");
        for line in field(&answer, "set-cookie") {
            self.take(line, path);
        }
        self.answers.push(answer.clone());
        answer
    }

    /// Takes a cookie as RFC 6265 section 5.3 says. One for another domain than this host it would refuse or widen.
    fn take(&mut self, line: &str, asked_for: &str) {
        let mut parts = line.split(';').map(str::trim);
        let pair = parts.next().unwrap().to_owned();
        let mut path = None;
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            assert!(!name.eq_ignore_ascii_case("domain"), "{line}");
            if name.eq_ignore_ascii_case("path") {
                path = Some(value.to_owned()).filter(|path| path.starts_with('/'));
            }
        }
        let of_request = asked_for.split('?').next().unwrap().rsplit_once('/').unwrap().0;
        self.cookies.push(Cookie {
            pair,
            path: path.unwrap_or_else(|| if of_request.is_empty() { "/" } else { of_request }.to_owned()),
        });
    }

    /// The cookies that it would send (RFC 6265 section 5.1.4).
    pub fn cookies_for(&self, path: &str) -> String {
        let matching = |cookie: &&Cookie| {
            let below = path.strip_prefix(&cookie.path);
            below.is_some_and(|rest| rest.is_empty() || cookie.path.ends_with('/') || rest.starts_with('/'))
        };
        let pairs: Vec<&str> = self
            .cookies
            .iter()
            .filter(matching)
            .map(|cookie| cookie.pair.as_str())
            .collect();
        pairs.join("; ")
    }

    /// The values of a header in all answers so far.
    pub fn header(&self, name: &str) -> Vec<&str> {
        self.answers.iter().flat_map(|answer| field(answer, name)).collect()
    }

    /// Where a reference leads from a path, without leaving the host (RFC 3986 section 5.2).
    fn resolve(&self, reference: &str, from: &str) -> String {
        if let Some((_, rest)) = reference.split_once("://") {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            assert!(host.eq_ignore_ascii_case(&self.host), "led away to {reference}");
            return if path.is_empty() { "/" } else { path }.to_owned();
        }
        if reference.starts_with('/') {
            assert!(!reference.starts_with("//"), "led away to {reference}");
            return reference.to_owned();
        }
        let mut segments: Vec<&str> = from.split('?').next().unwrap().split('/').collect();
        segments.pop();
        for segment in reference.split('/') {
            match segment {
                ".." => drop(segments.pop()),
                segment => segments.push(segment),
            }
        }
        segments.join("/")
    }
}

/// An app that answers each text on its WebSockets with what it was asked for, and the text; and sets a cookie.
#[allow(clippy::result_large_err, reason = "the crate's own type")]
pub async fn echo(stream: TcpStream) {
    let mut asked_for = String::new();
    let accept = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        asked_for = request.uri().to_string();
        response
            .headers_mut()
            .insert("set-cookie", "socket=1; Path=/".parse().unwrap());
        Ok(response)
    };
    let Ok(mut socket) = accept_hdr_async(stream, accept).await else {
        return;
    };
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Text(text) = message
            && socket.send(Message::text(format!("{asked_for} {text}"))).await.is_err()
        {
            return;
        }
    }
}

/// Opens a WebSocket as a browser does, and returns it with the answer to its handshake.
///
/// # Errors
/// The status of a refusal.
pub async fn open_socket(
    router: SocketAddr,
    host: &str,
    target: &str,
) -> Result<(WebSocketStream<TcpStream>, http::Response<Option<Vec<u8>>>), u16> {
    let mut request = format!("ws://{host}{target}").into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    headers.insert("origin", format!("http://{host}").parse().unwrap());
    let stream = TcpStream::connect(router).await.unwrap();
    match timeout(PATIENCE, client_async(request, stream)).await.unwrap() {
        Ok(opened) => Ok(opened),
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

/// Sends a text over a WebSocket and returns the next that comes.
pub async fn say(socket: &mut WebSocketStream<TcpStream>, text: &str) -> String {
    socket.send(Message::text(text)).await.unwrap();
    let message = timeout(PATIENCE, socket.next()).await.unwrap();
    message.unwrap().unwrap().into_text().unwrap().to_string()
}
