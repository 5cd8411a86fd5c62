//! The program: commands, files, exit codes.

use crate::anchors::Anchors;
use crate::config::InjectionFlags;
use crate::config::serve::{Config, ServeFlags};
use crate::names::{DEFAULT_AUTHORITY_SECRET, DEFAULT_OWN_NAMESPACE};
use crate::offline::{Outcome, documents, explain, inject};
use crate::rotation::command::RootCommand;
use crate::settings::Settings;
use clap::{Args, Parser, Subcommand};
use sandgate_mesh::command_line::ConfigError;
use sandgate_mesh::memory;
use sandgate_mesh::process::{self, EndSignals};
use sandgate_mesh::telemetry::{LogFormat, init};
use std::fs::File;
use std::io::{Read, Write};
use std::process::ExitCode;

/// The program, as its errors name it.
const PROGRAM: &str = "sandbox-injector";
/// Threads that read, write and judge ordinary reviews. Long ones are judged beside them.
const WORKERS: usize = 2;
/// The longest file with roots in bytes. It may hold comments.
const MAX_ROOTS: u64 = 64 << 10;
/// Of a container's memory an offline command takes this part for each byte of its file: half of what is left by a server
/// beside it, as judging an export of pods takes up to 70 bytes for each.
const BUDGET_PER_BYTE: u64 = 140;

/// Puts a gate into every sandbox pod of an opted-in namespace. Without a command it serves.
#[derive(Debug, Parser)]
#[command(name = "sandbox-injector", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the admission webhook, and look after its certificate and each opted-in namespace's `NetworkPolicy`.
    Serve(Box<ServeFlags>),
    /// Look at the root certificate in the cluster, and replace it.
    Root(RootCommand),
    /// Say what the webhook would decide about the pods of a file, why, and what to change. Fails if one is refused or
    /// there is none.
    Explain {
        /// How the answer is written.
        #[arg(short, long, value_enum, default_value_t = explain::Format::Table)]
        output: explain::Format,
        #[command(flatten)]
        input: Input,
    },
    /// Put gates into the pods and pod templates of a file and write the result to standard output.
    Inject {
        /// How the result is written.
        #[arg(short, long, value_enum, default_value_t = documents::Format::Yaml)]
        output: documents::Format,
        #[command(flatten)]
        input: Input,
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
    /// PEM file with the roots that the cluster's gates know the control plane by, one or more. `inject` needs it; without
    /// it `explain` doesn't judge the roots of gates that are there already.
    #[arg(long, value_name = "PEM")]
    trust_anchors_file: Option<String>,
    #[command(flatten)]
    injection: InjectionFlags,
}

impl Input {
    fn anchors(&self) -> Result<Option<Anchors>, String> {
        let Some(path) = &self.trust_anchors_file else {
            return Ok(None);
        };
        let read = || {
            let file = File::open(path).map_err(|error| error.to_string())?;
            let text = at_most(MAX_ROOTS, file)?;
            let text = text.ok_or_else(|| format!("longer than {} KiB", MAX_ROOTS / 1024))?;
            Anchors::from_pem(text.as_bytes()).map_err(|error| error.to_string())
        };
        read()
            .map(Some)
            .map_err(|error| format!("--trust-anchors-file {path}: {error}"))
    }
}

/// How to give `inject` what only a cluster knows.
fn no_roots() -> String {
    format!(
        "--trust-anchors-file: give the roots by which gates know the control plane: kubectl get secret \
         {DEFAULT_AUTHORITY_SECRET} -n {DEFAULT_OWN_NAMESPACE} -o jsonpath='{{.data.tls\\.crt}}' | base64 -d > roots.pem"
    )
}

/// Runs the program and maps its end to an exit code: 0 done, 1 failed or refused, 2 usage, 64 bad configuration.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command.unwrap_or_else(|| Command::Serve(Box::new(cli.serve))) {
        Command::Serve(flags) => serve(*flags),
        Command::Root(command) => root(&command),
        Command::Explain { input, output } => offline(&input, input.anchors(), |settings, anchors, namespace, text| {
            explain::explain(settings, anchors.as_ref(), namespace, text, output)
        }),
        Command::Inject { input, output } => {
            let anchors = input.anchors().and_then(|anchors| anchors.ok_or_else(no_roots));
            offline(&input, anchors, |settings, anchors, namespace, text| {
                inject::inject(settings, anchors, namespace, text, output)
            })
        }
    }
}

fn cannot_start(error: &ConfigError) -> ExitCode {
    say(&error.to_string());
    ExitCode::from(error.exit_code())
}

fn unfit(problems: Vec<String>) -> ConfigError {
    ConfigError::Settings {
        program: PROGRAM,
        problems,
    }
}

fn serve(flags: ServeFlags) -> ExitCode {
    let config = match flags.config() {
        Ok(config) => config,
        Err(problems) => return cannot_start(&unfit(problems)),
    };
    if let Err(error) = init(&config.log_level, LogFormat::Json) {
        return cannot_start(&ConfigError::log_level(PROGRAM, &error));
    }
    process::end(PROGRAM, run(config))
}

fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let mut signals = EndSignals::listen()?;
        crate::serve(config, async move { signals.next().await }).await
    });
    runtime.shutdown_background();
    result
}

/// Runs a command at the API server.
fn root(command: &RootCommand) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(command.run()));
    match done {
        Ok(text) if std::io::stdout().write_all(text.as_bytes()).is_ok() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("{PROGRAM}: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs a command on a file. `anchors` is what came of the flag with the roots.
fn offline<A>(
    input: &Input,
    anchors: Result<A, String>,
    command: impl Fn(&Settings, &A, &str, &str) -> Result<Outcome, String>,
) -> ExitCode {
    let (settings, anchors) = match (input.injection.settings(), anchors) {
        (Ok(settings), Ok(anchors)) => (settings, anchors),
        (settings, anchors) => {
            let problems = settings.err().into_iter().flatten().chain(anchors.err());
            return cannot_start(&unfit(problems.collect()));
        }
    };
    let outcome = read(&input.filename)
        .and_then(|text| command(&settings, &anchors, &input.namespace, &text))
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
    let most = memory::container_budget().map_or(u64::MAX, |budget| budget / BUDGET_PER_BYTE);
    match file {
        "-" => read_within(most, std::io::stdin()),
        path => read_within(most, File::open(path).map_err(|error| error.to_string())?),
    }
}

fn read_within(most: u64, source: impl Read) -> Result<String, String> {
    at_most(most, source)?.ok_or_else(|| {
        format!(
            "longer than {} KiB, more than is safe to read within this container's memory; run the same command, with the \
             same flags, outside",
            most / 1024
        )
    })
}

/// The whole text, unless it is longer.
fn at_most(most: u64, source: impl Read) -> Result<Option<String>, String> {
    let mut text = String::new();
    let read = source.take(most.saturating_add(1)).read_to_string(&mut text);
    let length = read.map_err(|error| error.to_string())?;
    Ok(Some(text).filter(|_| u64::try_from(length).is_ok_and(|length| length <= most)))
}

/// A line on standard error. There is nobody to tell if that is closed.
fn say(line: &str) {
    // It may repeat a file's text; the terminal must not obey it.
    let line = line.replace(|c: char| c.is_control() && c != '\n', "?");
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_injects_without_roots_is_told_how_to_get_them() {
        let told = no_roots();
        let command =
            "kubectl get secret sandgate-authority -n agent-sandbox-system -o jsonpath='{.data.tls\\.crt}' | base64 -d";
        assert!(
            told.starts_with("--trust-anchors-file: ") && told.contains(command),
            "{told}"
        );
    }

    #[test]
    fn a_file_that_would_take_the_memory_of_a_server_beside_is_not_read_whole() {
        assert_eq!(read_within(2048, "a".repeat(2048).as_bytes()), Ok("a".repeat(2048)));
        let endless = std::io::repeat(b'a');
        let refusal = read_within(2048, endless).unwrap_err();
        assert!(
            refusal.starts_with("longer than 2 KiB, ") && refusal.contains("run the same command"),
            "{refusal}"
        );
    }
}
