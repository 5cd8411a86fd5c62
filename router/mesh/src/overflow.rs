//! What clients hear whose connections are over a cap.

use crate::contract::X_SANDGATE_OUTCOME;
use crate::outcome::Outcome;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;

/// A whole answer, with a text. Made once, and sent to many.
#[derive(Debug, Clone)]
pub struct Refusal(Bytes);

impl Refusal {
    /// 503, where the process has no more room for anybody; a gate's says its outcome, too.
    pub fn unavailable(text: &str, outcome: Option<Outcome>) -> Self {
        Self::new("503 Service Unavailable", text, outcome)
    }

    /// 429, where the client has had its share.
    pub fn too_many(text: &str) -> Self {
        Self::new("429 Too Many Requests", text, None)
    }

    fn new(status: &str, text: &str, outcome: Option<Outcome>) -> Self {
        let body = serde_json::json!({ "detail": text }).to_string();
        let outcome = outcome.map(|outcome| format!("{X_SANDGATE_OUTCOME}: {}\r\n", outcome.as_str()));
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Retry-After: 1\r\n{}Connection: close\r\n\r\n{body}",
            body.len(),
            outcome.unwrap_or_default()
        );
        Self(answer.into())
    }
}

/// Connections over a cap that are told so at the same time; further ones are only closed.
const TOLD_AT_ONCE: usize = 64;
/// How long such a connection may take to hear it.
const TELLING_TIME: Duration = Duration::from_secs(1);
/// What it may send meanwhile, in bytes. Closing with unread bytes would take the answer back.
const HEARD_OUT: u64 = 64 * 1024;

/// Tells clients over a cap to come back later, where that costs next to nothing.
#[derive(Debug, Clone)]
pub struct Overflow(Arc<Semaphore>);

impl Default for Overflow {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TOLD_AT_ONCE)))
    }
}

impl Overflow {
    /// Answers the first bytes of a request and closes, or only closes when many are being told already.
    pub fn answer<S>(&self, mut stream: S, answer: &Refusal)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(permit) = Arc::clone(&self.0).try_acquire_owned() else {
            return;
        };
        let Refusal(answer) = answer.clone();
        tokio::spawn(async move {
            let tell = async {
                // An answer that comes before its request is nobody's.
                let _first_bytes = stream.read(&mut [0; 1024]).await?;
                stream.write_all(&answer).await?;
                stream.shutdown().await?;
                tokio::io::copy(&mut stream.take(HEARD_OUT), &mut tokio::io::sink()).await
            };
            // A client that is gone, or too slow, isn't told.
            let _ = tokio::time::timeout(TELLING_TIME, tell).await;
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(answer: &Refusal) -> String {
        let (mut client, stream) = tokio::io::duplex(1024);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        Overflow::default().answer(stream, answer);
        let mut text = String::new();
        let read = client.read_to_string(&mut text);
        tokio::time::timeout(Duration::from_secs(5), read)
            .await
            .unwrap()
            .unwrap();
        text
    }

    #[tokio::test]
    async fn an_answer_is_as_long_as_it_says_and_names_the_outcome_of_a_gate_only() {
        let start = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\
                     Retry-After: 1\r\n";
        let end = "Connection: close\r\n\r\n{\"detail\":\"Déjà.\"}";
        assert_eq!(
            told(&Refusal::unavailable("Déjà.", None)).await,
            format!("{start}{end}")
        );
        let gate = Refusal::unavailable("Déjà.", Some(Outcome::Overloaded));
        let expected = format!("{start}x-sandgate-outcome: overloaded\r\n{end}");
        assert_eq!(told(&gate).await, expected);
    }
}
