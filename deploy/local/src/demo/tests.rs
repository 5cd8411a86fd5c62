#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{DemoFolder, serve};

const PATIENCE: Duration = Duration::from_secs(10);

struct Demo {
    address: SocketAddr,
    folder: PathBuf,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Demo {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let folder = DemoFolder::create().unwrap();
        let path = folder.path().to_owned();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(async move {
            serve("alpha", listener, folder, async { drop(stopped.await) }).await;
        });
        Self {
            address,
            folder: path,
            stop,
            served,
        }
    }

    /// Sends `head` without its `Connection` and `Host` fields, then `body`, and reads all of the answer.
    async fn send(&self, head: &str, body: &[u8]) -> Reply {
        let (line, fields) = head.split_once("\r\n").unwrap_or((head, ""));
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!("{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{fields}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // A refused body may find the connection closed.
        let _ = stream.write_all(body).await;
        let mut reply = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut reply))
            .await
            .unwrap()
            .unwrap();
        let end = reply.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(reply[..end].to_vec()).unwrap().to_lowercase();
        Reply {
            status: head[9..12].parse().unwrap(),
            head,
            body: reply[end + 4..].to_vec(),
        }
    }

    async fn get(&self, target: &str) -> Reply {
        self.send(&format!("GET {target}"), b"").await
    }

    async fn upload(&self, field: &str, name: &str, content: &[u8]) -> Reply {
        let disposition = format!("form-data; name=\"{field}\"; filename=\"{name}\"");
        let mut body = format!("--XX\r\nContent-Disposition: {disposition}\r\n\r\n").into_bytes();
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n--XX--\r\n");
        self.send(&upload_head(body.len()), &body).await
    }

    fn files(&self) -> PathBuf {
        self.folder.join("files")
    }
}

fn upload_head(length: usize) -> String {
    format!("POST /upload\r\nContent-Type: multipart/form-data; boundary=XX\r\nContent-Length: {length}\r\n")
}

#[tokio::test]
async fn the_mirror_shows_the_target_and_every_header_as_received() {
    let demo = Demo::start().await;
    let head =
        "PATCH /a//b/../%2e%2F?x=%20&y\r\nX-A: 1\r\nX-A: 2\r\nX-Forwarded-For: 10.0.0.9\r\nContent-Length: 5\r\n";
    let reply = demo.send(head, b"hello").await;
    assert_eq!(reply.status, 200);
    assert!(reply.head.contains("content-type: application/json"));
    let seen = reply.json();
    assert_eq!(seen["sandbox"], "alpha");
    assert_eq!(seen["method"], "PATCH");
    assert_eq!(seen["path"], "/a//b/../%2e%2F?x=%20&y");
    assert_eq!(seen["headers"]["x-a"], json!(["1", "2"]));
    assert_eq!(seen["body_bytes"], 5);
    assert_eq!(seen["caller"]["x_forwarded_for"], json!(["10.0.0.9"]));
    assert_eq!(seen["caller"]["authorization_seen"], false);
}

#[tokio::test]
async fn the_mirror_tells_when_a_credential_got_through() {
    let demo = Demo::start().await;
    let seen = demo.send("GET /\r\nAuthorization: Bearer x\r\n", b"").await.json();
    assert_eq!(seen["caller"]["authorization_seen"], true);
}

#[tokio::test]
async fn the_mirror_counts_a_chunked_body() {
    let demo = Demo::start().await;
    let body = format!("5\r\nhello\r\n3e8\r\n{}\r\n0\r\n\r\n", "x".repeat(1000));
    let reply = demo
        .send("POST /x\r\nTransfer-Encoding: chunked\r\n", body.as_bytes())
        .await;
    assert_eq!(reply.json()["body_bytes"], 1005);
}

#[tokio::test]
async fn uploads_come_back_byte_for_byte_under_any_name() {
    let demo = Demo::start().await;
    let content: Vec<u8> = (0..300_000_u32)
        .flat_map(u32::to_le_bytes)
        .chain(*b"\r\n--X\r\n-")
        .collect();
    for name in [
        "plain.txt",
        "a b+c%25.txt",
        "dir%2Fname with space.txt",
        "d/e/f.bin",
        "/abs",
        "ü€.txt",
        "a;b=c.txt",
    ] {
        assert_eq!(demo.upload("file", name, &content).await.status, 200, "{name}");
        let mut encoded = String::new();
        for byte in name.bytes() {
            write!(encoded, "%{byte:02X}").unwrap();
        }
        let reply = demo.get(&format!("/download/{encoded}")).await;
        assert_eq!(reply.status, 200, "{name}");
        assert!(
            reply.head.contains(&format!("content-length: {}", content.len())),
            "{name}"
        );
        assert!(reply.body == content, "{name} came back changed");
        let exists = demo.get(&format!("/exists/{encoded}")).await.json();
        assert_eq!(exists, json!({ "path": name, "exists": true }));
    }
    assert_eq!(
        demo.get("/exists/dir/name%20with%20space.txt").await.json()["exists"],
        false
    );
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let demo = Demo::start().await;
    assert_eq!(demo.upload("file", "empty", b"").await.status, 200);
    let reply = demo.get("/download/empty").await;
    assert_eq!((reply.status, reply.body.len()), (200, 0));
}

#[tokio::test]
async fn list_has_the_shape_the_sdk_reads() {
    let demo = Demo::start().await;
    assert_eq!(demo.get("/list/.").await.json(), json!([]));
    demo.upload("file", "b.txt", b"12345").await;
    demo.upload("file", "a/c.txt", b"1").await;
    symlink("/etc", demo.files().join("link")).unwrap();
    for root in ["/list/", "/list/.", "/list/%2F"] {
        let entries = demo.get(root).await.json();
        let names: Vec<_> = entries.as_array().unwrap().iter().map(|entry| &entry["name"]).collect();
        assert_eq!(names, ["a", "b.txt"], "{root}");
        assert_eq!(entries[0]["type"], "directory");
        assert_eq!((&entries[1]["type"], &entries[1]["size"]), (&json!("file"), &json!(5)));
        assert!(entries[1]["mod_time"].as_f64().unwrap() > 1.7e9);
    }
    assert_eq!(demo.get("/list/missing").await.status, 404);
    assert_eq!(demo.get("/list/b.txt").await.status, 400);
}

#[tokio::test]
async fn no_name_leads_out_of_the_folder() {
    let demo = Demo::start().await;
    let outside = demo.folder.join("secret");
    std::fs::write(&outside, "secret").unwrap();
    symlink(&demo.folder, demo.files().join("out")).unwrap();
    symlink(&outside, demo.files().join("leak")).unwrap();
    let attacks = [
        ("../secret", 403),
        ("..%2Fsecret", 403),
        ("%2e%2e/secret", 403),
        ("a/..%2f../secret", 403),
        ("out%2Fsecret", 403),
        ("leak", 403),
        ("a%00b", 400),
        ("%ff", 400),
    ];
    for (name, status) in attacks {
        for endpoint in ["download", "list", "exists"] {
            let reply = demo.get(&format!("/{endpoint}/{name}")).await;
            assert_eq!(reply.status, status, "{endpoint} {name}");
            assert!(reply.json()["detail"].is_string(), "{endpoint} {name}");
        }
    }
    let absolute = format!("/download/{}", outside.display()).replace("secret", "s%65cret");
    assert_eq!(demo.get(&absolute).await.status, 404);

    for name in ["../secret", "out/secret", "leak", "a/../../secret"] {
        assert_eq!(demo.upload("file", name, b"overwritten").await.status, 403, "{name}");
    }
    assert_eq!(
        demo.upload("file", outside.to_str().unwrap(), b"inside").await.status,
        200
    );
    assert_eq!(std::fs::read(&outside).unwrap(), b"secret");
}

#[tokio::test]
async fn files_and_folders_are_not_mixed_up() {
    let demo = Demo::start().await;
    demo.upload("file", "f", b"1").await;
    demo.upload("file", "d/x", b"1").await;
    assert_eq!(demo.upload("file", "f/below", b"1").await.status, 409);
    assert_eq!(demo.upload("file", "d", b"1").await.status, 409);
    assert_eq!(demo.get("/download/d").await.status, 409);
    assert_eq!(demo.get("/download/f/below").await.status, 404);
    assert_eq!(demo.get("/exists/f/below").await.json()["exists"], false);
    assert_eq!(demo.get(&format!("/exists/{}", "n".repeat(300))).await.status, 400);
}

#[tokio::test]
async fn bad_uploads_are_refused_and_leave_nothing() {
    let demo = Demo::start().await;
    assert_eq!(demo.upload("other", "a", b"1").await.status, 400);
    assert_eq!(demo.upload("file", "", b"1").await.status, 400);
    assert_eq!(demo.upload("file", ".", b"1").await.status, 400);
    assert_eq!(
        demo.send("POST /upload\r\nContent-Length: 2\r\n", b"hi").await.status,
        415
    );
    let cut = b"--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"cut\"\r\n\r\nhalf";
    assert_eq!(demo.send(&upload_head(cut.len()), cut).await.status, 400);
    let two: Vec<u8> = ["one", "two"]
        .iter()
        .flat_map(|name| {
            format!("--XX\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n1\r\n")
                .into_bytes()
        })
        .chain(*b"--XX--\r\n")
        .collect();
    assert_eq!(demo.send(&upload_head(two.len()), &two).await.status, 400);
    let reply = demo.upload("file", "big", &vec![0; (32 << 20) + 1]).await;
    assert_eq!(reply.status, 413);
    assert!(reply.json()["detail"].as_str().unwrap().contains("32 MiB"));
    assert_eq!(demo.get("/list/").await.json(), json!([]));
    assert_eq!(std::fs::read_dir(demo.folder.join("incoming")).unwrap().count(), 0);
}

#[tokio::test]
async fn the_folder_takes_in_a_bounded_amount() {
    let demo = Demo::start().await;
    let content = vec![7; 30 << 20];
    for _ in 0..8 {
        assert_eq!(demo.upload("file", "same", &content).await.status, 200);
    }
    // What is refused takes nothing.
    for _ in 0..2 {
        assert_eq!(demo.upload("file", "same", &content).await.status, 507);
        assert_eq!(demo.upload("file", "small", &vec![7; 1 << 20]).await.status, 200);
    }
}

#[tokio::test]
async fn commands_are_not_run() {
    let demo = Demo::start().await;
    let reply = demo
        .send("POST /execute\r\nContent-Length: 16\r\n", b"{\"command\":\"id\"}")
        .await;
    assert_eq!(reply.status, 501);
    assert!(reply.json()["detail"].as_str().unwrap().contains("--sandbox"));
}

#[tokio::test]
async fn known_endpoints_name_their_methods() {
    let demo = Demo::start().await;
    for (head, allowed) in [
        ("GET /upload", "post"),
        ("DELETE /download/x", "get, head"),
        ("GET /execute", "post"),
        ("POST /events", "get, head"),
    ] {
        let reply = demo.send(head, b"").await;
        assert_eq!(reply.status, 405, "{head}");
        assert!(reply.head.contains(&format!("allow: {allowed}")), "{head}");
    }
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let demo = Demo::start().await;
    let mut stream = TcpStream::connect(demo.address).await.unwrap();
    stream
        .write_all(b"GET /events HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let began = Instant::now();
    let mut text = String::new();
    let mut first_at = None;
    let mut buffer = [0; 4096];
    loop {
        let read = timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        if read == 0 {
            break;
        }
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        if text.contains("id: 1") {
            first_at.get_or_insert_with(|| (began.elapsed(), text.contains("id: 2")));
        }
    }
    assert!(text.to_lowercase().contains("content-type: text/event-stream"));
    assert_eq!(text.matches("event: tick\n").count(), 5);
    let (_, with_second) = first_at.unwrap();
    assert!(!with_second, "the first event waited for the second");
    assert!(began.elapsed() >= Duration::from_millis(750));
}

#[tokio::test]
async fn the_folder_is_private_and_goes_with_the_app() {
    let demo = Demo::start().await;
    let mode = std::fs::metadata(&demo.folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    demo.upload("file", "x", b"1").await;
    // One idle connection and one in the middle of a request.
    let mut idle = TcpStream::connect(demo.address).await.unwrap();
    let mut busy = TcpStream::connect(demo.address).await.unwrap();
    busy.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    assert!(busy.read(&mut [0; 4096]).await.unwrap() > 0);

    demo.stop.send(()).unwrap();
    let mut rest = String::new();
    timeout(PATIENCE, busy.read_to_string(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(rest.contains("id: 5"), "the running request was cut off");
    assert_eq!(idle.read(&mut [0; 16]).await.unwrap(), 0);
    timeout(PATIENCE, demo.served).await.unwrap().unwrap();
    assert!(!demo.folder.exists());
}

#[test]
fn folder_names_do_not_repeat() {
    let (one, two) = (DemoFolder::create().unwrap(), DemoFolder::create().unwrap());
    assert_ne!(one.path(), two.path());
}
