use super::*;
use crate::authorize::{OwnPorts, RequestFacts, authorize};
use http::Method;
use sandgate_mesh::policy::PolicySnapshot;
use sandgate_mesh::sandbox::AppPort;
use tokio::net::{TcpListener, TcpSocket};

/// The permission of this caller to go to this port.
fn permit(caller: Caller, port: u16) -> Permit {
    let snapshot = format!(
        r#"{{"version":1,"generation":{{"epoch":1,"counter":1}},"defaultPolicy":"anonymous","ports":[{port}],"policies":[]}}"#
    );
    let request = RequestFacts {
        direct: false,
        port: AppPort::new(port).unwrap(),
        method: &Method::GET,
        path: "/",
    };
    let snapshot = PolicySnapshot::parse(snapshot.as_bytes()).unwrap();
    let own = OwnPorts { mesh: 0, health: 0 };
    authorize(&Arc::new(caller), &request, Some(&snapshot), &own).unwrap()
}

/// A door, and the permission to go through it to [`nobody`].
fn door() -> (Door, Permit, TcpSocket) {
    let (permit, socket) = nobody();
    (Door::new(Arc::default(), 1), permit, socket)
}

/// A port that is bound, where nobody listens yet, and the permission to go there.
pub(crate) fn nobody() -> (Permit, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    (permit(Caller::Anonymous, port), socket)
}

/// Somebody who listens and takes no connection: the queue is full, so that further attempts get no answer at all.
pub(crate) async fn busy(socket: TcpSocket, port: LoopbackPort) -> (TcpListener, Vec<TcpStream>) {
    let listener = socket.listen(1).unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = connect(port).await {
        queued.push(stream);
    }
    (listener, queued)
}

/// What becomes of the permit within so many milliseconds, and after how many.
async fn opened_within(door: &Door, permit: Permit, millis: u64) -> (Option<io::ErrorKind>, u128) {
    let started = Instant::now();
    let opened = door
        .open(permit, HttpVersion::Http1, started + Duration::from_millis(millis))
        .await;
    (opened.err().map(|error| error.kind()), started.elapsed().as_millis())
}

#[tokio::test(start_paused = true)]
async fn a_port_that_opens_during_the_retries_is_reached() {
    let (door, permit, socket) = door();
    let later = async {
        sleep(Duration::from_millis(1_300)).await;
        socket.listen(1).unwrap()
    };
    let ((error, _), _listener) = tokio::join!(opened_within(&door, permit, 60_000), later);
    assert_eq!(error, None);
}

#[tokio::test(start_paused = true)]
async fn a_port_that_refuses_is_no_longer_tried_after_three_retries_or_when_the_time_is_over() {
    for (millis, tried_until) in [(60_000, 1_400), (1_401, 1_400), (1_400, 600), (601, 600), (500, 200)] {
        let (door, permit, _socket) = door();
        let ended = opened_within(&door, permit, millis).await;
        assert_eq!(ended, (Some(io::ErrorKind::ConnectionRefused), tried_until), "{millis}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_port_that_takes_no_connection_is_tried_once_and_no_longer_than_the_time_given() {
    for (millis, tried_until) in [(60_000, 5_000), (5_001, 5_000), (2_000, 2_000)] {
        let (door, permit, socket) = door();
        let _busy = busy(socket, permit.port()).await;
        let ended = opened_within(&door, permit, millis).await;
        assert_eq!(ended, (Some(io::ErrorKind::TimedOut), tried_until), "{millis}");
    }
}

#[test]
fn nobody_yet_is_told_from_somebody_busy_and_from_an_address_that_is_not_there() {
    use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, TimedOut};
    for (first, second, told) in [
        (ConnectionRefused, ConnectionRefused, ConnectionRefused),
        (ConnectionRefused, AddrNotAvailable, ConnectionRefused),
        (AddrNotAvailable, ConnectionRefused, ConnectionRefused),
        (TimedOut, ConnectionRefused, TimedOut),
        (ConnectionRefused, TimedOut, TimedOut),
        (AddrNotAvailable, TimedOut, TimedOut),
    ] {
        assert_eq!(
            what_tells_more(first.into(), second.into()).kind(),
            told,
            "{first} {second}"
        );
    }
}

#[tokio::test]
async fn a_kept_connection_is_opened_by_a_permit_of_its_caller_only() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let door = Door::new(Arc::default(), 8);
    let user = |name: &str| Caller::Static {
        name: name.parse().unwrap(),
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let open = async |name| {
        door.open(permit(user(name), port), HttpVersion::Http1, deadline)
            .await
            .unwrap()
    };
    let keep = async |lease: Lease<Key>| {
        lease.give_back();
        // hyper says that a connection can be used once its driver has run.
        tokio::task::yield_now().await;
    };
    let first = open("alice").await;
    let key = first.key.clone();
    keep(first.into_lease()).await;

    let _of_bob = open("bob").await;
    let kept = door.pool.take(&key, HttpVersion::Http1).expect("it went to bob");
    keep(kept).await;
    let _again = open("alice").await;
    assert!(
        door.pool.take(&key, HttpVersion::Http1).is_none(),
        "alice got another one"
    );
}
