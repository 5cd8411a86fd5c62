//! Clients that send one request after the other, and notice the first that fails.

use crate::{PATIENCE, exchange, read_until, status};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Clients that go on until they are told to stop. The first request that fails is the end of it.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Vec<Arc<AtomicUsize>>,
    clients: JoinSet<()>,
}

impl Load {
    /// For each router two clients: one that keeps its connection and one that makes a new one for each request.
    /// `request` makes one with these fields; its answer must be `hello`.
    pub fn start(request: impl Fn(&str) -> String, routers: &[SocketAddr]) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            answered: Vec::new(),
            clients: JoinSet::new(),
        };
        for router in routers.iter().copied() {
            for fields in ["", "Connection: close\r\n"] {
                let count = Arc::new(AtomicUsize::new(0));
                let (stop, request) = (Arc::clone(&load.stop), request(fields));
                load.answered.push(Arc::clone(&count));
                load.clients.spawn(async move {
                    let mut kept = TcpStream::connect(router).await.unwrap();
                    while !stop.load(Ordering::Relaxed) {
                        let answer = if fields.is_empty() {
                            kept.write_all(request.as_bytes()).await.unwrap();
                            read_until(&mut kept, b"\r\n\r\nhello").await
                        } else {
                            exchange(TcpStream::connect(router).await.unwrap(), &request, false).await
                        };
                        assert_eq!(status(&answer), 200, "{answer}");
                        assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }
        load
    }

    /// How many requests have been answered.
    pub fn answered(&self) -> usize {
        self.answered.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Waits until every client has had some more answers.
    pub async fn goes_on(&mut self) {
        let counts = || self.answered.iter().map(|count| count.load(Ordering::Relaxed));
        let wanted: Vec<_> = counts().map(|count| count + 5).collect();
        let moving = async {
            while counts().zip(&wanted).any(|(count, wanted)| count < *wanted) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = moving => {}
            // Before it was told to.
            ended = self.clients.join_next() => ended.unwrap().unwrap(),
        }
    }

    /// Fails unless all went well to the end.
    pub async fn stop(mut self) {
        self.goes_on().await;
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = timeout(PATIENCE, self.clients.join_next()).await.unwrap() {
            ended.unwrap();
        }
    }
}
