//! `sandgate-local`: the whole mesh on one machine. See `sandgate-local --help`.

use sandgate_local::{cli::Options, mesh};
use sandgate_mesh::telemetry;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = match Options::read(std::env::args_os()) {
        Ok(options) => options,
        Err(error) => {
            // Also help and version, which are no failure: clap knows where each goes.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let result = mesh::start(&options);
    telemetry::flush();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "sandgate-local: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}
