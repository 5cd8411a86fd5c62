//! The file endpoints of the agent-sandbox runtime, as the SDK `k8s-agent-sandbox` calls them.

use std::fs::Metadata;
use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body;
use multer::{Constraints, Field, Multipart, SizeLimit};
use serde_json::{Value, json};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::answer::{self, Answer, BODY_SILENCE, Refusal};
use super::folder::{DemoFolder, Incoming, decode};

/// Largest file of one upload, in bytes.
const MAX_FILE: u64 = 32 << 20;
/// Room for the multipart framing around it.
const FRAMING: u64 = 64 << 10;
/// The one form field.
const FIELD: &str = "file";
/// Pieces a file is read in.
const PIECE: usize = 64 << 10;
/// How long the rest of a refused upload is read, so that its sender gets to read the answer.
const DRAIN: Duration = Duration::from_secs(5);

/// `POST /upload`: one file in the multipart field `file`, whose `filename` is its path in the folder (RFC 7578).
pub(super) async fn upload(folder: &DemoFolder, request: Request<body::Incoming>) -> Result<Answer, Refusal> {
    let content_type = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let boundary = multer::parse_boundary(content_type);
    let mut body = request.into_body();
    let received = match boundary {
        Ok(boundary) => receive(folder, boundary, &mut body).await,
        Err(error) => Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error.to_string())),
    };
    if received.is_err() {
        let _ = timeout(DRAIN, answer::count(&mut body)).await;
    }
    let received = received?;
    Ok(answer::json(StatusCode::OK, received.to_string()))
}

async fn receive(folder: &DemoFolder, boundary: String, body: &mut body::Incoming) -> Result<Value, Refusal> {
    let limits = SizeLimit::new()
        .whole_stream(MAX_FILE + FRAMING)
        .for_field(FIELD, MAX_FILE);
    let constraints = Constraints::new().allowed_fields(vec![FIELD]).size_limit(limits);
    let mut form = Multipart::with_constraints(body.into_data_stream(), boundary, constraints);

    let mut received = None;
    while let Some(field) = in_time(form.next_field()).await? {
        if received.is_some() {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "one upload holds one file"));
        }
        let Some(name) = field.file_name().map(String::from) else {
            return Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "the form field `file` has no filename",
            ));
        };
        // Before the content: a name that can't be stored is refused without reading the file.
        folder.resolve(&name).await?;
        let (incoming, size) = write(folder, field).await?;
        received = Some((name, incoming, size));
    }
    let Some((name, incoming, size)) = received else {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "the form has no field `file`"));
    };
    folder.keep(incoming, &name).await?;
    Ok(json!({ "message": format!("File '{name}' uploaded successfully."), "size": size }))
}

async fn write<'a>(folder: &'a DemoFolder, mut field: Field<'_>) -> Result<(Incoming<'a>, u64), Refusal> {
    let mut incoming = folder.incoming_file();
    let mut file = File::create_new(incoming.path()).await?;
    let mut size = 0_u64;
    while let Some(piece) = in_time(field.chunk()).await? {
        incoming.take(piece.len() as u64)?;
        file.write_all(&piece).await?;
        size = size.saturating_add(piece.len() as u64);
    }
    file.flush().await?;
    Ok((incoming, size))
}

async fn in_time<T>(step: impl Future<Output = multer::Result<T>>) -> Result<T, Refusal> {
    match timeout(BODY_SILENCE, step).await {
        Ok(Ok(step)) => Ok(step),
        Ok(Err(error)) => Err(malformed(&error)),
        Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the upload stopped arriving")),
    }
}

fn malformed(error: &multer::Error) -> Refusal {
    match error {
        multer::Error::FieldSizeExceeded { .. } | multer::Error::StreamSizeExceeded { .. } => {
            let detail = format!("the demo app takes files up to {} MiB", MAX_FILE >> 20);
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
        }
        multer::Error::UnknownField { .. } => {
            Refusal::new(StatusCode::BAD_REQUEST, "the form may hold the field `file` only")
        }
        error => Refusal::new(StatusCode::BAD_REQUEST, error.to_string()),
    }
}

/// `GET /download/{name}`: the file's bytes.
pub(super) async fn download(folder: &DemoFolder, name: &str) -> Result<Answer, Refusal> {
    let path = folder.resolve(&decode(name)?).await?;
    // Only then open it: opening anything else, such as a pipe, could wait for ever.
    let found = fs::symlink_metadata(&path).await?;
    if found.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory).into());
    }
    if !found.is_file() {
        return Err(Refusal::new(StatusCode::FORBIDDEN, "this is not a regular file"));
    }
    let file = File::open(&path).await?;
    let length = file.metadata().await?.len();
    let (sender, body) = answer::stream(Some(length));
    tokio::spawn(send_file(file, length, sender));
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// Sends exactly `left` bytes, or an error that breaks the answer off.
async fn send_file(mut file: File, mut left: u64, sender: mpsc::Sender<io::Result<Bytes>>) {
    while left > 0 {
        let piece = read_piece(&mut file, left).await;
        left = left.saturating_sub(piece.as_ref().map_or(left, |piece| piece.len() as u64));
        if sender.send(piece).await.is_err() {
            return;
        }
    }
}

async fn read_piece(file: &mut File, limit: u64) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(PIECE);
    if file.take(limit).read_buf(&mut piece).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(piece.into())
}

/// `GET /list/{name}`: the files and folders in a folder, by name. Anything else in it is left out.
pub(super) async fn list(folder: &DemoFolder, name: &str) -> Result<Answer, Refusal> {
    let path = folder.resolve(&decode(name)?).await?;
    if fs::symlink_metadata(&path).await?.is_file() {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "this is a file, not a folder"));
    }
    let mut entries = Vec::new();
    let mut found = fs::read_dir(&path).await?;
    while let Some(entry) = found.next_entry().await? {
        match entry.metadata().await {
            Ok(about) => entries.extend(describe(Path::new(&entry.file_name()), &about)),
            // Replaced or removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    entries.sort_by(|(left, _), (right, _)| left.cmp(right));
    let entries: Value = entries.into_iter().map(|(_, entry)| entry).collect();
    Ok(answer::json(StatusCode::OK, entries.to_string()))
}

/// One entry as the SDK's `FileEntry.from_legacy` reads it: `mod_time` in seconds since 1970.
fn describe(name: &Path, about: &Metadata) -> Option<(String, Value)> {
    let kind = if about.is_dir() {
        "directory"
    } else if about.is_file() {
        "file"
    } else {
        return None;
    };
    let modified = about
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    let entry = json!({ "name": name, "size": about.len(), "type": kind, "mod_time": modified.as_secs_f64() });
    Some((name, entry))
}

/// `GET /exists/{name}`: whether there is a file or folder of that name.
pub(super) async fn exists(folder: &DemoFolder, name: &str) -> Result<Answer, Refusal> {
    let name = decode(name)?;
    let path = folder.resolve(&name).await?;
    let exists = match fs::symlink_metadata(&path).await.map_err(Refusal::from) {
        Ok(_) => true,
        Err(refusal) if refusal.is_not_found() => false,
        Err(refusal) => return Err(refusal),
    };
    Ok(answer::json(
        StatusCode::OK,
        json!({ "path": name, "exists": exists }).to_string(),
    ))
}
