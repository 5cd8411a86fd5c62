//! CONTRACT section 2, browser credentials: a page that is opened with a token in its address gets the cookie, the cookie opens
//! that app and nothing else, no other page acts with it, and neither it nor the token reaches an app.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod cookie_attacks;
mod cookie_pages;
mod cookie_tokens;

use sandgate_tests::{Mesh, RecordingApp, TOKEN, assert_detail, field, send, status};
use std::net::SocketAddr;

const FLAGS: [&str; 5] = [
    "--path-routing-prefix=/p",
    "--host-routing-domain=sandboxes.example",
    "--authz-cookie-name=tok",
    "--authz-cookie-query-param=token",
    "--authz-cookie-allowed-origins=https://ide.example",
];
const HOST: &str = "router.example";
const MISSING: (u16, &str) = (401, "Missing or invalid Authorization header.");
const BAD: (u16, &str) = (401, "Invalid token.");
const FOREIGN: (u16, &str) = (
    403,
    "Refused by the router's origin check: with a cookie or a certificate, requests must come from a page of this host or of an allowed origin.",
);
const FOREIGN_UPGRADE: (u16, &str) = (403, "Upgrade requests from another origin are refused.");
const UPGRADE: &str = "Connection: upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

struct World {
    mesh: Mesh,
    routers: [SocketAddr; 2],
}

impl World {
    async fn new() -> Self {
        Self::around(RecordingApp::polite().await).await
    }

    async fn around(app: RecordingApp) -> Self {
        let mesh = Mesh::open(app).await;
        let routers = mesh.run_both(&FLAGS);
        Self { mesh, routers }
    }

    /// Where the app is, by path.
    fn base(&self) -> String {
        format!("/p/default/alpha/{}", self.mesh.ports.app)
    }

    /// And its own host.
    fn host(&self) -> String {
        format!("{}-alpha--default.sandboxes.example", self.mesh.ports.app)
    }

    /// Nothing of it reaches the app.
    async fn assert_refused(&self, request: &str, (code, text): (u16, &str), attack: &str) {
        for router in self.routers {
            let answer = send(router, request).await;
            assert_detail(&answer, code, text, attack);
            assert_eq!(field(&answer, "set-cookie"), [""; 0], "{attack}: {answer}");
            self.mesh.app.assert_untouched(attack);
        }
    }

    /// The answer, and the head that the app got; which holds nothing of any token.
    async fn let_in(&self, router: SocketAddr, request: &str) -> (String, String) {
        let answer = send(router, request).await;
        assert_eq!(status(&answer), 200, "{request}: {answer}");
        let head = self.mesh.app.take_only_request().head;
        let lower = head.to_ascii_lowercase();
        for secret in [TOKEN, "tok=", "token=", "authorization"] {
            assert!(!lower.contains(secret), "{secret}: {head}");
        }
        (answer, head)
    }
}

/// A request with these fields, each ended with CRLF.
fn request(line: &str, host: &str, fields: &str) -> String {
    let close = if fields.contains("Upgrade: ") {
        ""
    } else {
        "Connection: close\r\n"
    };
    format!("{line} HTTP/1.1\r\nHost: {host}\r\n{close}{fields}\r\n")
}

fn cookie() -> String {
    format!("Cookie: a=1; tok={TOKEN}; b=\"2\"\r\n")
}
