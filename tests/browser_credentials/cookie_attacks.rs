//! Other pages, forged requests and hostile apps: of none of them the app sees anything, and none sets the cookie.

use crate::{BAD, FLAGS, FOREIGN, FOREIGN_UPGRADE, HOST, MISSING, UPGRADE, World, cookie, request};
use sandgate_tests::{Mesh, RecordingApp, Step, TOKEN, assert_detail, field, read_until, send, send_whole, status};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

#[tokio::test]
async fn no_other_page_acts_with_the_cookie() {
    let world = World::new().await;
    for (host, target) in [
        (HOST.to_owned(), format!("{}/x", world.base())),
        (world.host(), "/x".into()),
    ] {
        for from in [
            String::new(),
            "Origin: null\r\n".into(),
            "Origin: https://evil.example\r\n".into(),
            format!("Origin: https://evil.{host}\r\n"),
            format!("Origin: https://{host}.evil.example\r\n"),
            format!("Origin: https://evil{host}\r\n"),
            format!("Origin: https://{host}:8443\r\n"),
            format!("Origin: https://{host}/\r\n"),
            format!("Origin: https://user@{host}\r\n"),
            "Origin: https://8888-beta--default.sandboxes.example\r\n".into(),
            "Origin: https://sandboxes.example\r\n".into(),
            "Origin: https://x.ide.example\r\n".into(),
            "Origin: http://ide.example\r\n".into(),
            format!("Origin: https://{host}\r\nOrigin: https://evil.example\r\n"),
            format!("Origin: https://{host}\r\nSec-Fetch-Site: cross-site\r\n"),
            "Origin: https://evil.example\r\nX-Forwarded-Host: evil.example\r\n".into(),
            "Sec-Fetch-Site: cross-site\r\n".into(),
            "Sec-Fetch-Site: same-site\r\n".into(),
            format!("Referer: https://{host}/\r\n"),
        ] {
            let fields = format!("{}{from}", cookie());
            for method in ["POST", "PUT", "DELETE", "PATCH", "INVENTED"] {
                let attack = request(&format!("{method} {target}"), &host, &fields);
                world
                    .assert_refused(&attack, FOREIGN, &format!("{method} {from}"))
                    .await;
            }
            let attack = request(&format!("GET {target}"), &host, &format!("{UPGRADE}{fields}"));
            world
                .assert_refused(&attack, FOREIGN, &format!("WebSocket {from}"))
                .await;
        }
        // What comes with a body is refused before the app hears of it, too.
        let fields = format!("{}Content-Length: 4\r\nOrigin: https://evil.example\r\n", cookie());
        let attack = request(&format!("POST {target}"), &host, &fields) + "evil";
        world.assert_refused(&attack, FOREIGN, "a form").await;
        // Without a cookie a WebSocket is no more open than before.
        let fields = format!("{UPGRADE}Origin: https://evil.example\r\n");
        let attack = request(&format!("GET {target}?token={TOKEN}"), &host, &fields);
        world
            .assert_refused(&attack, FOREIGN_UPGRADE, "a WebSocket with a token")
            .await;
    }
}

/// No page can have a router ask a name server, or learn whether there is a sandbox of that name.
#[tokio::test]
async fn no_other_page_has_anything_looked_up() {
    let mesh = Mesh::open(RecordingApp::polite().await).await;
    // A label has at most 63 bytes: no resolver asks a server for this name.
    let domain = format!("--cluster-domain={}", "x".repeat(64));
    for router in mesh.run_both(&[&FLAGS[..], &[&domain]].concat()) {
        for (host, target) in [
            (HOST, "/p/default/nobody/8888/x"),
            ("8888-nobody--default.sandboxes.example", "/x"),
        ] {
            let ask = async |line: &str, origin: &str, fields: &str| {
                let fields = format!("{}Origin: https://{origin}\r\n{fields}", cookie());
                send(router, request(&format!("{line} {target}"), host, &fields)).await
            };
            for (line, fields) in [("POST", ""), ("GET", UPGRADE)] {
                let own = ask(line, host, fields).await;
                let unknown = (502, "Could not connect to the backend sandbox: nobody");
                assert_detail(&own, unknown.0, unknown.1, "a page of its own");
                let other = ask(line, "evil.example", fields).await;
                assert_detail(&other, FOREIGN.0, FOREIGN.1, "another page");
            }
        }
    }
    mesh.app.assert_untouched("no such sandbox");
}

#[tokio::test]
async fn a_page_that_is_refused_gets_the_whole_answer_however_much_it_sends() {
    let world = World::new().await;
    let (host, target) = (world.host(), "/x");
    let foreign = format!("{}Origin: https://evil.example\r\n", cookie());
    for router in world.routers {
        let fields = format!("{foreign}Content-Length: 1000000\r\n");
        let attack = request(&format!("POST {target}"), &host, &fields) + &"e".repeat(1_000_000);
        assert_detail(&send_whole(router, attack).await, FOREIGN.0, FOREIGN.1, "a long form");
        // Who asks before it sends isn't told to send what nobody will get.
        let fields = format!("{foreign}Content-Length: 4\r\nExpect: 100-continue\r\n");
        let attack = request(&format!("POST {target}"), &host, &fields);
        assert_detail(&send(router, attack).await, FOREIGN.0, FOREIGN.1, "a form that asks");
    }
    world.mesh.app.assert_untouched("a form");
}

#[tokio::test]
async fn a_credential_that_occurs_twice_or_is_wrong_opens_nothing() {
    let world = World::new().await;
    for (host, page) in [
        (HOST.to_owned(), format!("{}/x", world.base())),
        (world.host(), "/x".into()),
    ] {
        for (query, fields, expected) in [
            ("", "Cookie: tok=@; tok=@\r\n", MISSING),
            ("", "Cookie: tok=@\r\nCookie: tok=evil\r\n", MISSING),
            ("", "Cookie: tok=evil; a=1; tok=@\r\n", MISSING),
            // What a cookie without a name looks like.
            ("", "Cookie: tok=@; =tok=evil\r\n", MISSING),
            ("", "Cookie: tok=@; tok\r\n", MISSING),
            ("?token=@&token=@", "", MISSING),
            ("?token=@&t%6Fken=evil", "", MISSING),
            ("?%74oken=evil&token=@", "Cookie: tok=@\r\n", MISSING),
            ("", "Cookie: tok=evil\r\n", BAD),
            ("", "Cookie: tok\r\n", BAD),
            ("", "Cookie: tok=\"@\"\r\n", BAD),
            ("", "Cookie: tok=Bearer @\r\n", BAD),
            ("?token=evil", "Cookie: tok=@\r\n", BAD),
            ("?token=", "Cookie: tok=@\r\n", BAD),
            ("?token=%0d%0aX-Evil:%201", "", BAD),
            ("?token=@%00", "", BAD),
            ("", "Cookie: Tok=@\r\n", MISSING),
            ("", "Cookie: xtok=@; \"tok\"=@\r\n", MISSING),
            ("?Token=@", "", MISSING),
            ("?a=token=@;token=@", "", MISSING),
            ("", "X-Cookie: tok=@\r\n", MISSING),
            ("", "Authorization: Bearer evil\r\nCookie: tok=@\r\n", BAD),
            ("?token=@", "Authorization: Basic @\r\n", MISSING),
            (
                "?token=@",
                "Authorization: Bearer @\r\nAuthorization: Bearer @\r\n",
                MISSING,
            ),
        ] {
            let attack = request(&format!("GET {page}{query}"), &host, fields).replace('@', TOKEN);
            world
                .assert_refused(&attack, expected, &format!("{query} {fields}"))
                .await;
        }
    }
}

#[tokio::test]
async fn an_app_sets_every_cookie_but_that_one() {
    let spellings = [
        "tok=evil",
        "TOK=evil; Path=/",
        "tok=evil; Domain=router.example; Path=/",
        "tok=evil; Domain=.example; Secure; SameSite=None",
        " tok =evil; Path=/p",
        "tok",
        "=tok=evil; Path=/",
        "= tok = evil",
        "tok=; Max-Age=0",
        "tok=evil; Path=/p/default/beta/80",
    ];
    let lines = spellings.map(|line| format!("Set-Cookie:{line}\r\n")).concat();
    let answer =
        format!("HTTP/1.1 200 OK\r\n{lines}Set-Cookie: mine=tok=1\r\nset-cookie: tokx=1\r\nContent-Length: 0\r\n\r\n");
    let world = World::around(RecordingApp::answering(Step::Answer(answer.into_bytes())).await).await;
    let base = world.base();
    let routing = format!(
        "X-Sandbox-ID: alpha\r\nX-Sandbox-Port: {}\r\nAuthorization: Bearer {TOKEN}\r\n",
        world.mesh.ports.app
    );
    for router in world.routers {
        for (line, host, fields) in [
            (format!("GET {base}/x"), HOST.to_owned(), cookie()),
            ("GET /x".into(), world.host(), cookie()),
            ("GET /x".into(), HOST.to_owned(), routing.clone()),
        ] {
            let (answer, _) = world.let_in(router, &request(&line, &host, &fields)).await;
            assert_eq!(field(&answer, "set-cookie"), ["mine=tok=1", "tokx=1"], "{line} {host}");
        }
        let page = format!("GET {base}?token={TOKEN}");
        let (answer, _) = world.let_in(router, &request(&page, HOST, "")).await;
        let own = format!("tok={TOKEN}; Path={base}; HttpOnly; SameSite=Lax; Secure");
        let others = ["mine=tok=1", "tokx=1"].map(|cookie| format!("{cookie}; Path={base}/"));
        assert_eq!(field(&answer, "set-cookie"), [&others[0], &others[1], &own]);
    }
}

#[tokio::test]
async fn an_answer_to_a_switch_of_protocols_sets_it_neither() {
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSet-Cookie: tok=evil\r\n\r\n";
    let world = World::around(RecordingApp::answering(Step::Answer(answer.into())).await).await;
    for router in world.routers {
        let fields = format!("{UPGRADE}{}Origin: https://{HOST}\r\n", cookie());
        let mut stream = TcpStream::connect(router).await.unwrap();
        let handshake = request(&format!("GET {}/x", world.base()), HOST, &fields);
        stream.write_all(handshake.as_bytes()).await.unwrap();
        let head = read_until(&mut stream, b"\r\n\r\n").await;
        assert_eq!((status(&head), field(&head, "set-cookie").len()), (101, 0), "{head}");
    }
}
