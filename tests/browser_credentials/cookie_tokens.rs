//! The tokens in it: good for what they are good for elsewhere, for as long, and never told.

use crate::{BAD, FLAGS, HOST, World, cookie, request};
use data_encoding::BASE64URL_NOPAD;
use sandgate_mesh::scoped_token::{Claims, Scope, Secrets};
use sandgate_mesh::telemetry::seconds_since_1970;
use sandgate_tests::api_server::{ApiServer, nobody, user};
use sandgate_tests::folder::Folder;
use sandgate_tests::processes::{ProcessMesh, Programs, get};
use sandgate_tests::{Mesh, RecordingApp, TOKEN, field, programs, send, status};
use std::time::SystemTime;

const PROGRAMS: Programs = programs!();

/// Mints scoped tokens, and has routers that take them.
async fn scoped() -> (World, Secrets, Folder) {
    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    let (mesh, folder) = (Mesh::open(RecordingApp::polite().await).await, Folder::new());
    folder.rename_over("secret", SECRET);
    let file = format!("--authz-scoped-token-secret-file={}", folder.path("secret").display());
    let flags = [&FLAGS[..], &["--auth-token=", "--authz-mode=scoped-token", &file]].concat();
    let routers = mesh.run_both(&flags);
    (World { mesh, routers }, Secrets::parse(SECRET).unwrap(), folder)
}

fn claims(name: &str, lasts: u64) -> Claims {
    let sandbox = sandgate_mesh::sandbox::SandboxKey {
        namespace: "default".parse().unwrap(),
        name: name.parse().unwrap(),
    };
    let scope = Scope {
        sandbox,
        uid: None,
        port: None,
        method: None,
        path: None,
    };
    Claims {
        scope,
        expires: seconds_since_1970(SystemTime::now()) + lasts,
    }
}

#[tokio::test]
async fn the_cookie_of_one_sandbox_opens_no_other_and_ends_with_its_token() {
    let (world, secrets, _folder) = scoped().await;
    let base = world.base();
    let token = secrets.mint(&claims("alpha", 3600)).unwrap();
    for router in world.routers {
        let answer = send(router, request(&format!("GET {base}/?token={token}"), HOST, "")).await;
        world.mesh.app.take_only_request();
        let cookies = field(&answer, "set-cookie");
        let (_, age) = cookies[0].split_once("; Max-Age=").unwrap();
        assert!((3000..=3600).contains(&age.parse::<u64>().unwrap()), "{answer}");
    }
    let elsewhere = secrets.mint(&claims("beta", 3600)).unwrap();
    let other = (403, "Token is not valid for this sandbox.");
    for (line, host, fields) in [
        (
            format!("GET {base}/"),
            HOST.to_owned(),
            format!("Cookie: tok={elsewhere}\r\n"),
        ),
        ("GET /".into(), world.host(), format!("Cookie: tok={elsewhere}\r\n")),
        (format!("GET {base}/?token={elsewhere}"), HOST.to_owned(), String::new()),
        (
            base.replace("alpha", "beta").replacen('/', "GET /", 1),
            HOST.to_owned(),
            format!("Cookie: tok={token}\r\n"),
        ),
    ] {
        world
            .assert_refused(&request(&line, &host, &fields), other, &line)
            .await;
    }
    let ended = secrets
        .mint(&Claims {
            expires: 1,
            ..claims("alpha", 0)
        })
        .unwrap();
    for (line, fields) in [
        (format!("GET {base}/?token={ended}"), String::new()),
        (format!("GET {base}/"), format!("Cookie: tok={ended}\r\n")),
    ] {
        world.assert_refused(&request(&line, HOST, &fields), BAD, &line).await;
    }
}

#[tokio::test]
async fn a_token_of_the_api_servers_is_reviewed_wherever_it_stands_and_lasts_as_long_as_it_says() {
    let end = seconds_since_1970(SystemTime::now()) + 600;
    let claims = BASE64URL_NOPAD.encode(format!(r#"{{"iss":"cluster","exp":{end}}}"#).as_bytes());
    let (good, revoked) = (format!("e30.{claims}.good"), format!("e30.{claims}.revoked"));
    let known = good.clone();
    let server = ApiServer::answering(move |review| {
        if review["spec"]["token"] == *known {
            user("system:serviceaccount:team-a:runner", &["system:serviceaccounts"])
        } else {
            nobody()
        }
    })
    .await;
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    let kubeconfig = server.flag();
    let flags = [&FLAGS[..], &["--auth-token=", "--authz-mode=tokenreview", &kubeconfig]].concat();
    let routers = mesh.run_both(&flags);
    let world = World { mesh, routers };
    let base = world.base();
    for (line, fields) in [
        (format!("GET {base}/?token={revoked}"), String::new()),
        (format!("GET {base}/"), format!("Cookie: tok={revoked}\r\n")),
    ] {
        world.assert_refused(&request(&line, HOST, &fields), BAD, &line).await;
    }
    for router in world.routers {
        let (answer, _) = world
            .let_in(router, &request(&format!("GET {base}/?token={good}"), HOST, ""))
            .await;
        let cookies = field(&answer, "set-cookie");
        let (kept, attributes) = cookies[0].split_once(';').unwrap();
        let (_, age) = attributes.split_once("; Max-Age=").unwrap();
        assert!((1..=600).contains(&age.parse::<u64>().unwrap()), "{answer}");
        let fields = format!("Cookie: {kept}\r\nOrigin: https://{HOST}\r\n");
        world
            .let_in(router, &request(&format!("POST {base}/"), HOST, &fields))
            .await;
    }
}

#[tokio::test]
async fn neither_logs_nor_metrics_hold_a_token() {
    let app = RecordingApp::polite().await;
    let flags = [&FLAGS[..], &["--log-level=trace,hyper=info"]].concat();
    let mut mesh = ProcessMesh::start(PROGRAMS, app.port(), &flags).await;
    let base = format!("/p/default/alpha/{}", app.port());
    let guessed = "guessed-secret";
    let filling = "x".repeat(5000);
    for (number, (line, fields, code)) in (1..).zip([
        (format!("GET {base}/x?token={TOKEN}"), String::new(), 200),
        (format!("GET {base}/x"), cookie(), 200),
        (
            format!("GET {base}/x"),
            format!("{}Referer: https://{HOST}/?token={TOKEN}\r\n", cookie()),
            200,
        ),
        (format!("GET {base}/x?token={guessed}"), String::new(), 401),
        (format!("GET {base}/x"), format!("Cookie: tok={guessed}\r\n"), 401),
        (format!("GET {base}/x?token={guessed}{filling}"), String::new(), 401),
        (format!("POST {base}/x"), cookie(), 403),
        (format!("GET /p/default?token={TOKEN}"), String::new(), 400),
    ]) {
        let answer = send(mesh.http, request(&line, HOST, &fields)).await;
        assert_eq!(status(&answer), code, "{line}: {answer}");
        mesh.router.logs("\"log\":\"access\"", number).await;
    }
    let (log, metrics) = (mesh.router.stderr(), get(mesh.metrics, "/metrics").await.1);
    for secret in [TOKEN, guessed] {
        assert!(!log.contains(secret) && !metrics.contains(secret), "{secret}: {log}");
    }
    assert!(
        metrics.contains(r#"sandbox_router_authz_decisions_total{decision="deny",sandbox_namespace="default"} 1"#),
        "{metrics}"
    );
}
