//! The published Python SDK in its default mode: it finds the router by `kubectl port-forward`.

use crate::install::PATIENCE;
use crate::pods::{APP_PORT, running, stored, team, until_replaced};
use crate::sandboxes::warm_pool;
use sandgate_cluster_tests::runner::{Test, note};
use sandgate_cluster_tests::{Cluster, tests};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

pub(crate) const TESTS: &[Test] = tests![
    @alone the_published_sdk_runs_a_command_and_keeps_a_file,
    @alone the_published_sdk_is_back_when_its_pod_was_replaced,
];

/// No command of the SDK's hangs. Through upstream's router one did, for a minute.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);

/// A pod's specification with upstream's own runtime, which the image starts by itself.
fn runtime() -> Value {
    json!({
        "terminationGracePeriodSeconds": 5,
        "containers": [{
            "name": "runtime", "image": "local/app:1", "imagePullPolicy": "Never",
            "ports": [{"containerPort": APP_PORT}],
            "readinessProbe": {"httpGet": {"path": "/", "port": APP_PORT}, "periodSeconds": 1},
        }],
    })
}

/// A program that uses the SDK, in this namespace. It is ended if it takes far too long.
fn client(program: &str, namespace: &str) -> Command {
    let python = std::env::var_os("SANDGATE_PYTHON").expect("SANDGATE_PYTHON isn't set: use tests/cluster/run");
    let mut client = Command::new("timeout");
    client
        .args(["240".as_ref(), python.as_os_str(), "-B".as_ref()])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("node_suite").join(program))
        .arg(namespace);
    client
}

async fn the_published_sdk_runs_a_command_and_keeps_a_file(cluster: Cluster) {
    let team = team(&cluster).await;
    warm_pool(&team, &runtime(), 1).await;
    let mut client = client("sdk_client.py", team.name());
    let done = tokio::task::spawn_blocking(move || client.output().unwrap())
        .await
        .unwrap();
    let (told, log) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(done.status.success(), "{told}{log}");
    told.lines().for_each(note);
}

async fn the_published_sdk_is_back_when_its_pod_was_replaced(cluster: Cluster) {
    let team = team(&cluster).await;
    warm_pool(&team, &runtime(), 1).await;
    let mut user = User::start(team.name());
    let name = user.sandbox().await;
    user.until_answered(Instant::now()).await;
    let old = stored(&team, &name).await.as_ref().and_then(running).unwrap();
    let deleted = Instant::now();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": team.name()}});
    cluster.delete(&pod).await.unwrap();
    until_replaced(&team, &old).await;
    let ready = Instant::now();
    let back = user.until_answered(ready).await;
    let (slowest, failed) = user.end().await;
    note(&format!(
        "{:.1} s without a pod; {failed} commands failed, none took longer than {:.2} s; the first that came after the new pod \
         was Ready was answered {:.2} s after that",
        (ready - deleted).as_secs_f64(),
        slowest.as_secs_f64(),
        (back - ready).as_secs_f64()
    ));
    assert!(failed > 0, "the pod was never away");
    assert!(slowest < ANSWERED_WITHIN, "a command took {slowest:?}");
    assert!(back - ready < ANSWERED_WITHIN, "{:?}", back - ready);
}

/// A user of the SDK who runs commands. It ends when its standard input is closed.
struct User {
    process: Child,
    told: UnboundedReceiver<(Instant, String)>,
    slowest: Duration,
    failed: usize,
}

impl User {
    fn start(namespace: &str) -> Self {
        let mut command = client("sdk_replaced.py", namespace);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (tell, told) = unbounded_channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = tell.send((Instant::now(), line));
            }
        });
        Self {
            process,
            told,
            slowest: Duration::ZERO,
            failed: 0,
        }
    }

    /// The next line, when it came and what it says after its first word.
    async fn told(&mut self) -> (Instant, String, String) {
        let told = tokio::time::timeout(PATIENCE, self.told.recv()).await;
        let (at, line) = told.expect("the SDK says something in time").expect("the SDK goes on");
        let (first, rest) = line.split_once(' ').unwrap_or((&line, ""));
        (at, first.to_owned(), rest.to_owned())
    }

    /// The sandbox that it has.
    async fn sandbox(&mut self) -> String {
        let (_, what, name) = self.told().await;
        assert_eq!(what, "sandbox");
        name
    }

    /// When a command was answered, of those that ended after this moment.
    async fn until_answered(&mut self, since: Instant) -> Instant {
        loop {
            let (at, what, took) = self.told().await;
            self.slowest = self.slowest.max(Duration::from_secs_f64(took.parse().unwrap()));
            match what.as_str() {
                "answered" if at > since => return at,
                "answered" => {}
                "failed" => self.failed += 1,
                other => panic!("{other} {took}"),
            }
        }
    }

    /// Has it end. How long the slowest command took, and how many failed.
    async fn end(mut self) -> (Duration, usize) {
        drop(self.process.stdin.take());
        let ended = tokio::task::spawn_blocking(move || self.process.wait().unwrap());
        assert!(ended.await.unwrap().success());
        (self.slowest, self.failed)
    }
}
