//! How a program is told to end, and what it says when it does.

use crate::polled::PollError;
use crate::telemetry;
use std::io;
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit code for a configuration that can't be run.
pub const BAD_CONFIGURATION: u8 = 64;

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    /// From now on these signals only end what waits for them. To be called inside a Tokio runtime.
    ///
    /// # Errors
    /// The system's.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Completes with the next of them.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Logs why `program` ends, if that is a failure, and waits until the log is written. The exit code: 0 done, 1 failed, 64
/// files that can't be used.
pub fn end(program: &str, result: anyhow::Result<()>) -> ExitCode {
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "{program} ends");
            if error.downcast_ref::<PollError>().is_some() {
                ExitCode::from(BAD_CONFIGURATION)
            } else {
                ExitCode::FAILURE
            }
        }
    };
    telemetry::flush();
    code
}
