//! Logs: one JSON object a line on standard error. Operational events go through `tracing`; access and audit lines, one
//! a request, through a [`LineLog`], whose own thread does the writing so that a slow reader doesn't stall a runtime.

use serde::Serialize;
use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use tracing_subscriber::EnvFilter;

/// Lines that may wait to be written. When that many wait, the writer of the next one waits too: none is lost.
const QUEUED_LINES: usize = 8192;

/// How operational events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Text,
}

/// Starts writing `tracing` events to standard error. `level` is a level (`info`) or a filter (`info,hyper=debug`).
///
/// # Errors
/// A filter that can't be parsed, or events that are written already.
pub fn init(level: &str, format: LogFormat) -> Result<(), String> {
    let filter = EnvFilter::try_new(level).map_err(|error| format!("log level {level:?}: {error}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
        LogFormat::Text => builder.with_target(false).with_ansi(false).try_init(),
    }
    .map_err(|error| error.to_string())
}

enum Entry {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Writes one JSON line per record.
#[derive(Debug, Clone)]
pub struct LineLog(SyncSender<Entry>);

impl LineLog {
    /// A log on standard error.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn stderr() -> std::io::Result<Self> {
        Self::to(std::io::stderr())
    }

    /// A log on any writer; tests read it back.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn to(writer: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (sender, entries) = sync_channel(QUEUED_LINES);
        std::thread::Builder::new()
            .name("line-log".into())
            .stack_size(64 * 1024)
            .spawn(|| write(entries, writer))?;
        Ok(Self(sender))
    }

    /// Writes one record as one line.
    pub fn write(&self, record: &impl Serialize) {
        if let Ok(mut line) = serde_json::to_vec(record) {
            line.push(b'\n');
            // The thread ends only with the process.
            let _ = self.0.send(Entry::Line(line));
        }
    }

    /// Waits until everything written so far has reached the writer.
    pub fn flush(&self) {
        let (done, wait) = sync_channel(1);
        if self.0.send(Entry::Flush(done)).is_ok() {
            let _ = wait.recv();
        }
    }
}

#[allow(clippy::needless_pass_by_value)] // the thread owns both
fn write(entries: Receiver<Entry>, mut writer: impl Write) {
    for entry in &entries {
        match entry {
            // Nothing can be done about a closed standard error, and the process must not end because of it.
            Entry::Line(line) => drop(writer.write_all(&line)),
            Entry::Flush(done) => {
                let _ = writer.flush();
                let _ = done.send(());
            }
        }
    }
}

/// The current time as RFC 3339 in UTC with milliseconds, for access and audit lines.
pub fn timestamp() -> String {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
        since.subsec_millis()
    )
}

/// The Gregorian date `days` after 1970-01-01, counting in 400-year cycles whose years begin on 1 March.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_gregorian() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_781, (2026, 11, 24)),
        ] {
            assert_eq!(civil_from_days(days), date);
        }
    }

    #[test]
    fn lines_arrive_whole_and_in_order() {
        let path = std::env::temp_dir().join(format!("sandgate-lines-{}", std::process::id()));
        let log = LineLog::to(std::fs::File::create(&path).unwrap()).unwrap();
        for number in 0..20_000 {
            log.write(&number);
        }
        log.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().map(|line| line.parse::<u32>().unwrap()).eq(0..20_000));
        std::fs::remove_file(path).unwrap();
    }
}
