//! The program: commands, files, exit codes.

use crate::config::InjectionFlags;
use crate::offline::{Outcome, documents, explain, inject};
use crate::settings::Settings;
use clap::{Args, Parser, Subcommand};
use std::io::{Read, Write};
use std::process::ExitCode;

/// Exit code for a configuration that can't be run.
const BAD_CONFIGURATION: u8 = 64;

/// Puts a gate into every sandbox pod of an opted-in namespace.
#[derive(Debug, Parser)]
#[command(name = "sandbox-injector", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what the webhook would decide about the pods of a file, why, and what to change. Fails if one is refused.
    Explain {
        #[command(flatten)]
        input: Input,
        /// How the answer is written.
        #[arg(short, long, value_enum, default_value_t = explain::Format::Table)]
        output: explain::Format,
    },
    /// Put gates into the pods and pod templates of a file and write the result to standard output.
    Inject {
        #[command(flatten)]
        input: Input,
        /// How the result is written.
        #[arg(short, long, value_enum, default_value_t = documents::Format::Yaml)]
        output: documents::Format,
    },
}

/// What the offline commands work on.
#[derive(Debug, Args)]
struct Input {
    /// File with Kubernetes objects in YAML or JSON; - for standard input.
    #[arg(short, long, value_name = "FILE")]
    filename: String,
    /// Namespace of objects that name none.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    injection: InjectionFlags,
}

/// Runs the program and maps its end to an exit code: 0 done, 1 failed or refused, 2 usage, 64 bad configuration.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Explain { input, output } => offline(input, |settings, namespace, text| {
            explain::explain(settings, namespace, text, output)
        }),
        Command::Inject { input, output } => offline(input, |settings, namespace, text| {
            inject::inject(settings, namespace, text, output)
        }),
    }
}

fn offline(input: Input, command: impl Fn(&Settings, &str, &str) -> Result<Outcome, String>) -> ExitCode {
    let settings = match input.injection.settings() {
        Ok(settings) => settings,
        Err(problems) => {
            say(&format!(
                "sandbox-injector can't start:\n  - {}",
                problems.join("\n  - ")
            ));
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let outcome = read(&input.filename)
        .and_then(|text| command(&settings, &input.namespace, &text))
        .map_err(|error| format!("{}: {error}", input.filename));
    match outcome {
        Ok(outcome) => {
            outcome.notes.iter().for_each(|note| say(note));
            let written = std::io::stdout().write_all(outcome.output.as_bytes());
            if outcome.admitted && written.is_ok() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            say(&error);
            ExitCode::FAILURE
        }
    }
}

fn read(file: &str) -> Result<String, String> {
    let mut text = String::new();
    let read = match file {
        "-" => std::io::stdin().read_to_string(&mut text).map(drop),
        path => std::fs::read_to_string(path).map(|content| text = content),
    };
    read.map(|()| text).map_err(|error| error.to_string())
}

/// A line on standard error. There is nobody to tell if that is closed.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
