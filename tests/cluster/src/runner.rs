//! Runs tests that share one cluster. They are no cargo tests: without a cluster there is nothing to run, and a test
//! that passes because it did nothing is worse than none.

// The runner's output is what a developer at a terminal reads.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use crate::Cluster;
use std::collections::VecDeque;
use std::panic::PanicHookInfo;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinError, JoinSet, LocalSet, spawn_local};

/// A test against the API server alone that takes longer has failed.
const TIME_LIMIT: Duration = Duration::from_secs(120);
/// So many tests run at a time: mostly they wait for the API server.
const AT_A_TIME: usize = 4;
/// The one argument that is no part of a test's name: the cluster is made ready for tests, and none is run.
const INSTALL: &str = "--install";

/// An async function that fails by panicking.
pub type Step = fn(Cluster) -> Pin<Box<dyn Future<Output = ()>>>;

/// One test. [`tests!`](crate::tests) makes them.
#[derive(Clone, Copy)]
pub struct Test {
    /// Module and function.
    pub name: &'static str,
    /// Whether no other test runs at the same time.
    pub alone: bool,
    /// The test itself.
    pub run: Step,
}

/// A list of [`Test`]s from async functions that take a [`Cluster`]. `@alone` before a name is for a test that changes
/// what others see, such as the chart as it is installed by default.
#[macro_export]
macro_rules! tests {
    (%is_alone alone) => { true };
    (%is_alone) => { false };
    ($($(@$alone:ident)? $name:ident),* $(,)?) => {
        &[$($crate::runner::Test {
            name: concat!(module_path!(), "::", stringify!($name)),
            alone: $crate::tests!(%is_alone $($alone)?),
            run: |cluster| Box::pin($name(cluster)),
        }),*]
    };
}

tokio::task_local! {
    static RUNNING: &'static str;
}

/// Tests that share one cluster, and what they share of its time.
pub struct Suite<'a> {
    /// What must be done before the first of them.
    pub set_up: Option<Step>,
    /// How long one may take.
    pub time_limit: Duration,
    /// The tests.
    pub lists: &'a [&'a [Test]],
}

/// Runs the tests whose names hold one of the command line's arguments, or all, and ends with `N passed, N failed`.
pub fn main(lists: &[&[Test]]) -> ExitCode {
    let suite = Suite {
        set_up: None,
        time_limit: TIME_LIMIT,
        lists,
    };
    suite.main()
}

impl Suite<'_> {
    /// Runs the tests whose names hold one of the command line's arguments, or all, and ends with `N passed, N failed`.
    pub fn main(self) -> ExitCode {
        let names: Vec<String> = std::env::args().skip(1).collect();
        let only_install = self.set_up.is_some() && names == [INSTALL];
        let tests = match select(self.lists, if only_install { &[] } else { &names }) {
            Ok(tests) => tests,
            Err(name) => {
                eprintln!("no test's name holds {name:?}; there are:");
                let all = self.lists.iter().copied().flatten();
                all.for_each(|test| eprintln!("  {}", shown(test)));
                return ExitCode::from(2);
            }
        };
        run(&self, if only_install { &[] } else { &tests })
    }
}

fn run(suite: &Suite<'_>, tests: &[Test]) -> ExitCode {
    std::panic::set_hook(Box::new(tell_panic));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let runtime = runtime.expect("the system gives threads");
    // Tests stay on this thread, so they needn't be `Send`; servers that they spawn have the others.
    let failed = LocalSet::new().block_on(&runtime, async {
        let (mut interrupt, mut terminate) = (
            signal(SignalKind::interrupt()).expect("signals can be handled"),
            signal(SignalKind::terminate()).expect("signals can be handled"),
        );
        tokio::select! {
            failed = run_all(suite, tests) => Some(failed),
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
        }
    });
    match failed {
        Some(0) => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
        None => ExitCode::from(130),
    }
}

fn select(lists: &[&[Test]], names: &[String]) -> Result<Vec<Test>, String> {
    let all: Vec<Test> = lists.iter().copied().flatten().copied().collect();
    for name in names {
        if !all.iter().any(|test| shown(test).contains(name.as_str())) {
            return Err(name.clone());
        }
    }
    let chosen = |test: &Test| names.is_empty() || names.iter().any(|name| shown(test).contains(name.as_str()));
    Ok(all.into_iter().filter(chosen).collect())
}

/// The name without that of the program.
fn shown(test: &Test) -> &'static str {
    test.name.split_once("::").map_or(test.name, |(_, name)| name)
}

async fn run_all(suite: &Suite<'_>, tests: &[Test]) -> usize {
    let cluster = Cluster::connect().await;
    if let Some(set_up) = suite.set_up {
        let started = Instant::now();
        let done = spawn_local(RUNNING.scope("the installation", set_up(cluster.clone()))).await;
        let verdict = if done.is_ok() { "ok    " } else { "FAILED" };
        println!("{verdict} the installation ({:.1} s)", started.elapsed().as_secs_f64());
        if done.is_err() {
            println!("\n0 passed, {} failed", tests.len().max(1));
            return tests.len().max(1);
        }
    }
    let (alone, together): (VecDeque<_>, VecDeque<_>) = tests.iter().copied().partition(|test| test.alone);
    let limit = suite.time_limit;
    let failed = run_list(&cluster, together, AT_A_TIME, limit).await + run_list(&cluster, alone, 1, limit).await;
    println!("\n{} passed, {failed} failed", tests.len() - failed);
    failed
}

/// Runs the part of a test after which something must be put in order, whatever comes of it.
///
/// # Errors
/// It has failed.
pub async fn caught(part: impl Future<Output = ()> + 'static) -> Result<(), JoinError> {
    let name = RUNNING.try_with(|test| *test).unwrap_or("a task of a test");
    let mut parts = JoinSet::new();
    parts.spawn_local(RUNNING.scope(name, part));
    parts.join_next().await.expect("there is one")
}

/// Tells a figure beside a test's verdict: what a developer may want to know and no machine can promise.
pub fn note(text: &str) {
    let name = RUNNING.try_with(|test| *test).unwrap_or("a task of a test");
    println!("       {name}: {text}");
}

async fn run_list(cluster: &Cluster, mut waiting: VecDeque<Test>, at_a_time: usize, limit: Duration) -> usize {
    let (mut running, mut failed) = (JoinSet::new(), 0);
    loop {
        while running.len() < at_a_time
            && let Some(test) = waiting.pop_front()
        {
            running.spawn_local(run_one(test, cluster.for_test(shown(&test)), limit));
        }
        match running.join_next().await {
            None => return failed,
            Some(passed) => failed += usize::from(!passed.unwrap_or(false)),
        }
    }
}

async fn run_one(test: Test, cluster: Cluster, limit: Duration) -> bool {
    let started = Instant::now();
    let mut task = spawn_local(RUNNING.scope(shown(&test), (test.run)(cluster.clone())));
    let result = tokio::time::timeout(limit, &mut task).await;
    if result.is_err() {
        task.abort();
        let _ = task.await;
    }
    let verdict = match result {
        Ok(Ok(())) => "ok    ",
        Ok(Err(_)) => "FAILED",
        Err(_) => "FAILED (time limit)",
    };
    println!("{verdict} {} ({:.1} s)", shown(&test), started.elapsed().as_secs_f64());
    cluster.tidy().await;
    matches!(result, Ok(Ok(())))
}

/// Says which test panicked: several run at a time.
fn tell_panic(info: &PanicHookInfo<'_>) {
    let test = RUNNING.try_with(|test| *test).unwrap_or("a task of a test");
    eprintln!("{test}: {info}");
}
