//! What a user sees: a page that is opened with a token works, and so does what it loads and sends.

use crate::{FLAGS, HOST, MISSING, World, cookie, request};
use sandgate_tests::browser::{echo, say};
use sandgate_tests::{Mesh, PATIENCE, RecordingApp, TOKEN, assert_detail, field, send, status};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

#[tokio::test]
async fn a_page_opened_with_a_token_sets_the_cookie_and_what_it_loads_comes_with_that() {
    let world = World::new().await;
    let (base, own_host) = (world.base(), world.host());
    for router in world.routers {
        for (host, mounted, path) in [(HOST, &*base, &*base), (&own_host, "", "/")] {
            let page = format!("GET {mounted}/lab?a=%2F&token={TOKEN}&b");
            let (answer, head) = world.let_in(router, &request(&page, host, "")).await;
            assert!(head.starts_with("GET /lab?a=%2F&b HTTP/1.1\r\n"), "{head}");
            let expected = format!("tok={TOKEN}; Path={path}; HttpOnly; SameSite=Lax; Secure");
            assert_eq!(field(&answer, "set-cookie"), [&expected]);
            assert_eq!(field(&answer, "referrer-policy"), ["no-referrer"]);
            assert_eq!(field(&answer, "cache-control"), ["no-store"]);

            let kept = expected.split(';').next().unwrap();
            // The page's address may be told nevertheless.
            let fields = format!(
                "Cookie: {kept}; theme=dark\r\nReferer: https://{host}{mounted}/lab?a=%2F&t%6Fken={TOKEN}&b\r\n"
            );
            let (answer, head) = world
                .let_in(router, &request(&format!("GET {mounted}/x.js?v=1"), host, &fields))
                .await;
            assert!(head.starts_with("GET /x.js?v=1 HTTP/1.1\r\n"), "{head}");
            assert_eq!(field(&head, "cookie"), ["theme=dark"]);
            assert_eq!(
                field(&head, "referer"),
                [format!("https://{host}{mounted}/lab?a=%2F&b")]
            );
            assert_eq!(field(&answer, "set-cookie"), [""; 0]);
            assert_eq!(field(&answer, "cache-control"), ["private"]);
        }
    }
}

#[tokio::test]
async fn a_websocket_opens_with_the_cookie_from_a_page_of_its_own() {
    let world = World::around(RecordingApp::serving(echo).await).await;
    for router in world.routers {
        for (host, target) in [
            (HOST.to_owned(), format!("{}/socket?a", world.base())),
            (world.host(), "/socket?a".into()),
        ] {
            for credential in [true, false] {
                let target = if credential {
                    target.clone()
                } else {
                    format!("{target}&token={TOKEN}")
                };
                let mut request = format!("ws://{host}{target}").into_client_request().unwrap();
                let headers = request.headers_mut();
                headers.insert("origin", format!("https://{host}").parse().unwrap());
                if credential {
                    headers.insert("cookie", format!("tok={TOKEN}").parse().unwrap());
                }
                let stream = TcpStream::connect(router).await.unwrap();
                let (mut socket, answer) = timeout(PATIENCE, client_async(request, stream)).await.unwrap().unwrap();
                assert_eq!(say(&mut socket, "hello").await, "/socket?a hello");
                let cookies: Vec<_> = answer.headers().get_all("set-cookie").iter().collect();
                assert_eq!(cookies.len(), 1, "the app's own: {cookies:?}");
            }
        }
    }
}

#[tokio::test]
async fn pages_of_the_host_and_of_listed_origins_act_with_the_cookie() {
    let world = World::new().await;
    for router in world.routers {
        for (host, target) in [
            (HOST.to_owned(), format!("{}/x", world.base())),
            (world.host(), "/x".into()),
        ] {
            for from in [
                format!("Origin: https://{host}\r\n"),
                format!("Origin: https://{host}\r\nSec-Fetch-Site: same-origin\r\n"),
                "Origin: https://ide.example\r\nSec-Fetch-Site: cross-site\r\n".into(),
                "Sec-Fetch-Site: same-origin\r\n".into(),
                "Sec-Fetch-Site: none\r\n".into(),
            ] {
                let fields = format!("{}{from}", cookie());
                let (_, head) = world
                    .let_in(router, &request(&format!("POST {target}"), &host, &fields))
                    .await;
                assert_eq!(field(&head, "cookie"), ["a=1; b=\"2\""]);
            }
            // Who only reads may come from anywhere, and so may who has a token of its own.
            let anywhere = "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site\r\n";
            for (line, fields) in [
                (format!("GET {target}"), cookie()),
                (format!("HEAD {target}"), cookie()),
                (
                    format!("POST {target}"),
                    format!("Authorization: Bearer {TOKEN}\r\n{}", cookie()),
                ),
                (format!("POST {target}?token={TOKEN}"), String::new()),
            ] {
                world
                    .let_in(router, &request(&line, &host, &format!("{fields}{anywhere}")))
                    .await;
            }
        }
    }
}

#[tokio::test]
async fn by_routing_headers_neither_counts_and_the_cookie_still_stays_behind() {
    let world = World::new().await;
    let routing = format!("X-Sandbox-ID: alpha\r\nX-Sandbox-Port: {}\r\n", world.mesh.ports.app);
    for (line, fields) in [
        ("GET /x".to_owned(), cookie()),
        (format!("GET /x?token={TOKEN}"), String::new()),
        ("POST /x".to_owned(), format!("{}Origin: https://{HOST}\r\n", cookie())),
    ] {
        let attack = request(&line, HOST, &format!("{routing}{fields}"));
        world.assert_refused(&attack, MISSING, &line).await;
    }
    let fields = format!("{routing}{}Authorization: Bearer {TOKEN}\r\n", cookie());
    for router in world.routers {
        let (_, head) = world.let_in(router, &request("GET /x?a", HOST, &fields)).await;
        assert_eq!(field(&head, "cookie"), ["a=1; b=\"2\""]);
        // Its query is the app's, whatever is in it.
        let query = send(router, request("GET /x?token=mine", HOST, &fields)).await;
        assert_eq!(status(&query), 200);
        let head = world.mesh.app.take_only_request().head;
        assert!(head.starts_with("GET /x?token=mine HTTP/1.1\r\n"), "{head}");
    }
}

#[tokio::test]
async fn without_the_flags_cookies_and_queries_are_the_apps() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    for router in mesh.run_both(&FLAGS[..2]) {
        let page = format!("/p/default/alpha/{}/?token={TOKEN}", mesh.ports.app);
        let fields = format!("{}Authorization: Bearer {TOKEN}\r\n", cookie());
        assert_eq!(
            status(&send(router, request(&format!("GET {page}"), HOST, &fields)).await),
            200
        );
        let head = mesh.app.take_only_request().head;
        assert!(head.starts_with(&format!("GET /?token={TOKEN} HTTP/1.1\r\n")), "{head}");
        assert_eq!(field(&head, "cookie"), [format!("a=1; tok={TOKEN}; b=\"2\"")]);
        let without = request(&format!("GET {page}"), HOST, &cookie());
        assert_detail(&send(router, without).await, MISSING.0, MISSING.1, "a cookie");
        mesh.app.assert_untouched("a cookie");
    }
}
