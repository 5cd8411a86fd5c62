//! Who the API server says calls, and what it lets them do: at a real gate, with real tokens and real rights.

use sandgate_cluster_tests::router::AccountFile;
use sandgate_cluster_tests::{Cluster, Namespace, runner::Test, tests, until};
use sandgate_mesh::policy::model::Source;
use sandgate_tests::{Mesh, RecordingApp, TOKEN, assert_detail, rule, send, status};
use serde_json::{Value, json};
use std::net::SocketAddr;

pub(crate) const TESTS: &[Test] = tests![
    a_service_account_calls_with_its_token_until_it_is_deleted,
    who_may_connect_is_what_rights_say,
];

const INVALID: &str = "Invalid token.";
const AUDIENCE: &str = "sandboxes";

fn account(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
}

/// A token of this ServiceAccount for this audience; for the API server itself without one.
async fn token(namespace: &Namespace, account: &str, audience: Option<&str>) -> String {
    let wanted = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"audiences": audience.into_iter().collect::<Vec<_>>()},
    });
    let issued = namespace.post(&["serviceaccounts", account, "token"], &wanted).await;
    issued.unwrap()["status"]["token"].as_str().unwrap().to_owned()
}

/// A router that has callers reviewed, as the ServiceAccount of that file.
fn run(mesh: &Mesh, account: &AccountFile, more: &[&str]) -> SocketAddr {
    let (kubeconfig, audiences) = (account.flag(), format!("--authz-tokenreview-audiences={AUDIENCE}"));
    let flags = [
        "--auth-token=",
        "--authz-mode=tokenreview",
        "--authz-tokenreview-ttl=2s",
        &audiences,
        &kubeconfig,
    ];
    mesh.run_router(&[&flags, more].concat())
}

async fn ask(mesh: &Mesh, router: SocketAddr, token: &str) -> String {
    send(router, mesh.head("GET / HTTP/1.1", "").replace(TOKEN, token)).await
}

/// Returns when a request with this token gets this status; what it got.
async fn until_answered(mesh: &Mesh, router: SocketAddr, token: &str, code: u16) -> String {
    until(&format!("the answer is {code}"), async || {
        let response = ask(mesh, router, token).await;
        if status(&response) == code {
            Ok(response)
        } else {
            Err(response)
        }
    })
    .await
}

async fn a_service_account_calls_with_its_token_until_it_is_deleted(cluster: Cluster) {
    let (system, team) = (cluster.reviewing_system().await, cluster.namespace(&[]).await);
    let caller = team.admitted(&account("caller")).await;
    team.admitted(&account("other")).await;
    // Nobody but this ServiceAccount, by its name at the gate.
    let only = Source {
        service_accounts: Some(vec![format!("{}/caller", team.name())]),
        ..Source::default()
    };
    let app = RecordingApp::polite().await;
    let mesh = Mesh::start(app, |ports| rule(only, ports.app, &[], &[])).await;
    let file = AccountFile::new(&system);
    let router = run(&mesh, &file, &["--authz-tokenreview-require-token"]);

    let good = token(&team, "caller", Some(AUDIENCE)).await;
    until_answered(&mesh, router, &good, 200).await;
    let seen = mesh.app.take_only_request().head;
    assert!(!seen.contains(&good), "{seen}");

    let other = token(&team, "other", Some(AUDIENCE)).await;
    let refused = ask(&mesh, router, &other).await;
    assert_detail(
        &refused,
        403,
        "Refused by the sandbox policy of alpha.",
        "another ServiceAccount",
    );
    let elsewhere = token(&team, "caller", Some("elsewhere")).await;
    let own = token(&team, "caller", None).await;
    // Its first character: some bits of the last one are padding, which changes no signature.
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let other_first = if signature.starts_with('A') { 'B' } else { 'A' };
    let forged = format!("{signed}.{other_first}{}", &signature[1..]);
    for (token, context) in [
        (elsewhere.as_str(), "another audience"),
        (&own, "the API server's audience"),
        (&forged, "another signature"),
        ("garbage", "garbage"),
    ] {
        assert_detail(&ask(&mesh, router, token).await, 401, INVALID, context);
    }
    mesh.app.assert_untouched("refused");

    cluster.delete(&caller).await.unwrap();
    let refused = until_answered(&mesh, router, &good, 401).await;
    assert_detail(&refused, 401, INVALID, "deleted");
}

async fn who_may_connect_is_what_rights_say(cluster: Cluster) {
    let (system, team) = (cluster.reviewing_system().await, cluster.namespace(&[]).await);
    team.admitted(&account("caller")).await;
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let file = AccountFile::new(&system);
    let router = run(&mesh, &file, &["--authz-subject-access-review"]);
    let token = token(&team, "caller", Some(AUDIENCE)).await;
    let name = format!("connect-{}", team.name());
    let (role, binding) = (
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name, "namespace": "default"},
            "rules": [{
                "apiGroups": ["agents.x-k8s.io"], "resources": ["sandboxes/proxy"], "resourceNames": ["another"],
                "verbs": ["connect"],
            }],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": "default"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": "caller", "namespace": team.name()}],
        }),
    );
    for object in [&role, &binding] {
        cluster.remove_afterwards(object);
    }
    cluster.apply_all(&[role.clone(), binding]).await;

    // A right to another sandbox is none to this one.
    let refused = until_answered(&mesh, router, &token, 403).await;
    assert_detail(&refused, 403, "Refused by the access review of alpha.", "no right");
    mesh.app.assert_untouched("no right");
    let mut wider = role;
    wider["rules"][0]["resourceNames"] = json!(["another", "alpha"]);
    cluster.apply(&wider).await.unwrap();
    until_answered(&mesh, router, &token, 200).await;
    mesh.app.take_only_request();
}
