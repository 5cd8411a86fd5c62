//! Logs: one JSON object a line on standard error. Operational events go through `tracing`; access and audit lines, one
//! a request, are written as they are. All go through one [`LineLog`], whose own thread does the writing, so that a slow
//! reader stalls no runtime: what doesn't fit in the queue is dropped and counted.

mod time;

pub use time::{seconds_since_1970, timestamp, utc};

use crate::metrics;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, Registry};
use serde::Serialize;
use std::borrow::Cow;
use std::error::Error;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Bytes of lines that may wait to be written.
const QUEUED_BYTES: usize = 1024 * 1024;
/// What a waiting line takes beside its text.
const ENTRY_BYTES: usize = 64;
/// How long a flush may take. Who doesn't read its log by then can't keep a process from its end.
const FLUSH_TIME: Duration = Duration::from_secs(2);

/// Longest method in a line, in bytes.
pub const LONGEST_METHOD: usize = 32;
/// Longest path in a line, in bytes.
pub const LONGEST_PATH: usize = 2048;
/// Longest of the other texts that a peer chooses, in bytes.
pub const LONGEST_TEXT: usize = 256;

/// The log on standard error, which all of a process share.
static STDERR: OnceLock<LineLog> = OnceLock::new();

/// How operational events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Text,
}

/// Starts writing `tracing` events to standard error. `level` is a level (`info`) or a filter (`info,hyper=debug`). The
/// process must [`flush`] before it ends.
///
/// # Errors
/// A filter that can't be parsed, or events that are written already.
pub fn init(level: &str, format: LogFormat) -> Result<(), String> {
    let filter = filter(level)?;
    let log = LineLog::stderr().map_err(|error| error.to_string())?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || EventWriter(log.clone()));
    match format {
        // A request that is traced is the span that its lines name.
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).try_init(),
        LogFormat::Text => builder.with_target(false).with_ansi(false).try_init(),
    }
    .map_err(|error| error.to_string())
}

/// Whether [`init`] would take this level or filter.
///
/// # Errors
/// What is wrong with it.
pub fn check_level(level: &str) -> Result<(), String> {
    filter(level).map(drop)
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    // The API server's client warns of an answer that it can't read by writing all of it: other people's pods, for example.
    // Errors it still logs, and whoever asked tells why the server didn't answer. Only its TLS has warnings that nobody else has.
    let readers = "kube_client::client=error,kube_client::client::tls=warn";
    EnvFilter::try_new(format!("{readers},{level}")).map_err(|error| format!("log level {level:?}: {error}"))
}

/// Waits a moment until what was logged so far has reached standard error.
pub fn flush() {
    if let Some(log) = STDERR.get() {
        log.flush();
    }
}

/// `text`, or its beginning and `…` where it has more than `most` bytes.
pub fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end));
    let beginning = end.and_then(|end| text.get(..end)).unwrap_or_default();
    format!("{beginning}…").into()
}

enum Entry {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

#[derive(Debug, Default)]
struct Fill {
    /// Bytes that wait.
    waiting: AtomicUsize,
    /// Lines for which there was no room.
    dropped: AtomicU64,
}

/// Writes one JSON line per record. Never blocks.
#[derive(Debug, Clone)]
pub struct LineLog {
    entries: Sender<Entry>,
    fill: Arc<Fill>,
}

impl LineLog {
    /// The log on standard error.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn stderr() -> io::Result<Self> {
        if let Some(log) = STDERR.get() {
            return Ok(log.clone());
        }
        let log = Self::to(io::stderr())?;
        Ok(STDERR.get_or_init(|| log).clone())
    }

    /// A log on any writer; tests read it back.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn to(writer: impl Write + Send + 'static) -> io::Result<Self> {
        let (sender, entries) = channel();
        let fill = Arc::new(Fill::default());
        let log = Self {
            entries: sender,
            fill: Arc::clone(&fill),
        };
        std::thread::Builder::new()
            .name("line-log".into())
            .stack_size(64 * 1024)
            .spawn(move || write(&entries, writer, &fill))?;
        Ok(log)
    }

    /// Writes one record as one line.
    pub fn write(&self, record: &impl Serialize) {
        if let Ok(mut line) = serde_json::to_vec(record) {
            line.push(b'\n');
            self.push(line);
        }
    }

    fn push(&self, line: Vec<u8>) {
        let bytes = room(&line);
        if self.fill.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes > QUEUED_BYTES {
            self.fill.waiting.fetch_sub(bytes, Ordering::Relaxed);
            self.fill.dropped.fetch_add(1, Ordering::Relaxed);
        } else {
            // The thread ends only with the process.
            let _ = self.entries.send(Entry::Line(line));
        }
    }

    /// Waits a moment until everything written so far has reached the writer.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.entries.send(Entry::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(FLUSH_TIME);
        }
    }

    /// Makes the number of dropped lines a metric of that name.
    ///
    /// # Errors
    /// The registry has one of that name.
    pub fn register(&self, registry: &Registry, name: &str) -> prometheus::Result<()> {
        let dropped = DroppedLines {
            fill: Arc::clone(&self.fill),
            counter: IntCounter::new(name, "Log lines dropped because standard error was read too slowly.")?,
        };
        metrics::register(registry, dropped)
    }
}

/// What a waiting line takes.
fn room(line: &Vec<u8>) -> usize {
    line.capacity() + ENTRY_BYTES
}

fn write(entries: &Receiver<Entry>, mut writer: impl Write, fill: &Fill) {
    let mut reported = 0;
    loop {
        let entry = entries.try_recv().or_else(|_| {
            reported = report(&mut writer, fill, reported);
            entries.recv()
        });
        match entry {
            Ok(Entry::Line(line)) => {
                // Nothing can be done about a closed standard error, and the process must not end because of it.
                let _ = writer.write_all(&line);
                fill.waiting.fetch_sub(room(&line), Ordering::Relaxed);
            }
            Ok(Entry::Flush(done)) => {
                reported = report(&mut writer, fill, reported);
                let _ = writer.flush();
                let _ = done.send(());
            }
            Err(_) => return,
        }
    }
}

/// Says how many lines were dropped since so many were `reported`, and returns how many that are in all.
fn report(writer: &mut impl Write, fill: &Fill, reported: u64) -> u64 {
    let dropped = fill.dropped.load(Ordering::Relaxed);
    if dropped > reported {
        let (time, lines) = (timestamp(), dropped - reported);
        let _ = writeln!(
            writer,
            r#"{{"timestamp":"{time}","level":"WARN","message":"{lines} log lines were dropped"}}"#
        );
    }
    dropped
}

/// Writes events, each of which comes whole.
struct EventWriter(LineLog);

impl Write for EventWriter {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.0.push(event.to_vec());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The dropped lines as a metric.
struct DroppedLines {
    fill: Arc<Fill>,
    counter: IntCounter,
}

impl Collector for DroppedLines {
    fn desc(&self) -> Vec<&Desc> {
        self.counter.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let dropped = self.fill.dropped.load(Ordering::Relaxed);
        self.counter.inc_by(dropped.saturating_sub(self.counter.get()));
        self.counter.collect()
    }
}

/// An error and all that it was caused by, in one line: what a library says of an error is seldom why it came to it.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let told = cause.to_string();
        // Some errors repeat their cause in their own text.
        if !text.ends_with(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn an_error_is_told_with_its_causes_and_no_cause_twice() {
        #[derive(Debug, thiserror::Error)]
        #[error("{text}")]
        struct Outer {
            text: &'static str,
            source: io::Error,
        }
        for (text, told) in [
            ("no answer", "no answer: reset"),
            ("no answer: reset", "no answer: reset"),
        ] {
            let source = io::Error::other("reset");
            assert_eq!(chain(&Outer { text, source }), told);
        }
    }

    #[test]
    fn what_the_api_servers_client_says_is_logged_but_for_the_objects_that_it_cannot_read() {
        let told = |level: &str| {
            let written = Held::default();
            let writer = written.clone();
            let log = tracing_subscriber::fmt()
                .with_env_filter(filter(level).unwrap())
                .with_writer(move || writer.clone());
            tracing::subscriber::with_default(log.finish(), || {
                tracing::warn!(target: "kube_client::client", "an object");
                tracing::error!(target: "kube_client::client::builder", "no connection");
                tracing::warn!(target: "kube_client::client::tls", "old roots");
                tracing::warn!(target: "kube_runtime::watcher", "forbidden");
            });
            let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
            ["an object", "no connection", "old roots", "forbidden"].map(|said| text.contains(said))
        };
        assert_eq!(told("info"), [false, true, true, true]);
        // Whoever wants all of it can have it.
        assert_eq!(told("info,kube_client::client=debug"), [true; 4]);
    }

    /// Text that was written, by a writer that takes nothing while the test holds the lock.
    #[derive(Clone, Default)]
    struct Held(Arc<Mutex<Vec<u8>>>);

    impl Write for Held {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_arrive_whole_and_in_order() {
        let written = Held::default();
        let log = LineLog::to(written.clone()).unwrap();
        for number in 0..20_000 {
            log.write(&number);
            if number % 1000 == 0 {
                log.flush();
            }
        }
        log.flush();
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(text.lines().map(|line| line.parse::<u32>().unwrap()).eq(0..20_000));
    }

    #[test]
    fn a_reader_that_takes_nothing_stalls_nobody_and_is_told_what_it_missed() {
        let written = Held::default();
        let log = LineLog::to(written.clone()).unwrap();
        let registry = Registry::new();
        log.register(&registry, "dropped_total").unwrap();
        let reader = written.0.lock().unwrap();
        let line = "x".repeat(10_000);
        for _ in 0..1000 {
            log.write(&line);
        }
        assert!(log.fill.waiting.load(Ordering::Relaxed) <= QUEUED_BYTES);
        drop(reader);
        log.flush();
        log.write(&"after");
        log.flush();

        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let kept = lines.iter().filter(|found| found.len() == line.len() + 2).count();
        assert!((50..=110).contains(&kept), "{kept}");
        let report: serde_json::Value = serde_json::from_str(lines[kept]).unwrap();
        let dropped = 1000 - kept;
        assert_eq!(report["message"], format!("{dropped} log lines were dropped"));
        assert_eq!(lines[kept + 1..], ["\"after\""]);
        for _ in 0..2 {
            let counted = registry.gather()[0].get_metric()[0].get_counter().get_value();
            assert_eq!(counted.to_string(), dropped.to_string());
        }
    }

    #[test]
    fn what_a_peer_makes_long_is_cut_and_shows_it() {
        assert_eq!(cut("GET", 3), "GET");
        assert_eq!(cut("GETS", 3), "GET…");
        assert_eq!(cut("aéé", 2), "a…");
        assert_eq!(cut("é", 0), "…");
    }
}
