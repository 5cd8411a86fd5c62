use super::*;
use crate::authorize::OwnPorts;
use crate::dial::tests::{busy, nobody};
use crate::{Caps, Settings};
use sandgate_mesh::sandbox::SandboxKey;
use std::fmt::{Debug, Write};
use std::sync::Mutex;
use tokio::sync::watch;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// What is logged, one line an event.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<String>>);

struct Line<'a>(&'a mut String);

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn event(&self, event: &Event<'_>) {
        let mut log = self.0.lock().unwrap();
        write!(log, "{} ", event.metadata().level()).unwrap();
        event.record(&mut Line(&mut log));
        log.push('\n');
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn sandbox() -> SandboxKey {
    SandboxKey {
        namespace: "default".parse().unwrap(),
        name: "alpha".parse().unwrap(),
    }
}

/// A gate that waits for so many milliseconds.
fn gate(proxy_timeout: u64) -> Arc<Gate> {
    let settings = Settings {
        sandbox: sandbox(),
        pod_uid: "11111111-2222-4333-8444-555555555555".parse().unwrap(),
        routers: Vec::new(),
        own_ports: OwnPorts { mesh: 0, health: 0 },
        caps: Caps::default(),
        framing: Arc::default(),
        proxy_timeout: Duration::from_millis(proxy_timeout),
        audit: false,
    };
    Gate::new(settings, watch::channel(None).1, watch::channel(None).1).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_the_app_includes_that_for_a_connection() {
    let requested = async |millis, permit| {
        let started = Instant::now();
        let request = Box::new(Request::new(Upload::empty(started)));
        let refused = exchange(&gate(millis), permit, request).await.unwrap_err();
        (refused.error, started.elapsed().as_millis())
    };
    for (millis, tried_until) in [(60_000, 5_000), (2_000, 2_000)] {
        let (permit, socket) = nobody();
        let _busy = busy(socket, permit.port()).await;
        assert_eq!(
            requested(millis, permit).await,
            (GateError::TimedOut, tried_until),
            "{millis}"
        );
    }
    for (millis, tried_until) in [(60_000, 1_400), (1_000, 600)] {
        let (permit, _socket) = nobody();
        assert_eq!(
            requested(millis, permit).await,
            (GateError::Dial, tried_until),
            "{millis}"
        );
    }
}

#[tokio::test]
async fn a_tunnel_that_does_not_open_is_told() {
    // Nobody switches the protocol of these.
    let [client, app] = [(); 2].map(|()| hyper::upgrade::on(Request::new(())));
    let (_drain, draining) = sandgate_mesh::drain::channel();
    let (protocol, limits) = (tunnel::Protocol::WebSocket, TunnelLimits::default());
    let ended = tunnel::join_upgraded(client, app, (), protocol, limits, draining, pending()).await;
    let sandbox = sandbox();
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), || {
        audit::tunnel_ended(&sandbox, Some(&HeaderValue::from_static("id-1")), ended);
    });
    let log = log.0.lock().unwrap();
    for part in [
        "INFO ",
        "message=the tunnel did not open",
        "sandbox=default/alpha",
        "request_id=id-1",
        "error=\"",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert_eq!(log.lines().count(), 1, "{log}");
}
