use super::*;
use HttpVersion::{Http1, Http2};
use tokio::io::{AsyncReadExt, DuplexStream, duplex};

const LIMITS: PoolLimits = PoolLimits {
    per_key: 2,
    total: 3,
    idle_time: Duration::from_secs(2),
};

/// A connection that is ready for a request, and its far end.
async fn connection() -> (Upstream, DuplexStream) {
    let (near, far) = duplex(1024);
    let upstream = Upstream::start(near, &Arc::default()).await.unwrap();
    while !upstream.is_ready() {
        tokio::task::yield_now().await;
    }
    (upstream, far)
}

/// Keeps a new connection for `key`, and returns its far end.
async fn keep(pool: &Arc<Pool<u8>>, key: u8, until: Option<SystemTime>) -> DuplexStream {
    let (upstream, far) = connection().await;
    pool.lease(pool.era(), key, upstream, until).give_back();
    far
}

/// The same for one that speaks HTTP/2.
async fn keep_http2(pool: &Arc<Pool<u8>>, key: u8) {
    let (near, far) = duplex(1024);
    let server = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
    let service = hyper::service::service_fn(|_| async { Ok::<_, String>(http::Response::new(String::new())) });
    tokio::spawn(server.serve_connection(hyper_util::rt::TokioIo::new(far), service));
    let upstream = Upstream::start_http2(near, &Arc::default()).await.unwrap();
    while !upstream.is_ready() {
        tokio::task::yield_now().await;
    }
    pool.lease(pool.era(), key, upstream, None).give_back();
}

async fn is_closed(mut far: DuplexStream) -> bool {
    let read = tokio::time::timeout(Duration::from_secs(5), far.read(&mut [0])).await;
    matches!(read, Ok(Ok(0)))
}

#[tokio::test]
async fn a_kept_connection_serves_its_own_key_once() {
    let pool = Pool::new(LIMITS);
    let _far = keep(&pool, 1, None).await;
    assert!(pool.take(&2, Http1).is_none());
    let lease = pool.take(&1, Http1).unwrap();
    assert!(pool.take(&1, Http1).is_none());
    lease.give_back();
    assert!(pool.take(&1, Http1).is_some());
}

#[tokio::test]
async fn a_connection_that_was_begun_before_a_renewal_is_closed_instead_of_kept() {
    let pool = Pool::new(LIMITS);
    let era = pool.era();
    let (upstream, far) = connection().await;
    pool.renew();
    pool.lease(era, 1, upstream, None).give_back();
    assert!(pool.take(&1, Http1).is_none());
    assert!(is_closed(far).await);
}

#[tokio::test]
async fn a_renewal_ends_idle_connections_and_those_in_use_that_would_come_back() {
    let pool = Pool::new(LIMITS);
    let (idle, used) = (keep(&pool, 1, None).await, keep(&pool, 2, None).await);
    let lease = pool.take(&2, Http1).unwrap();
    pool.renew();
    lease.give_back();
    assert!(pool.take(&1, Http1).is_none() && pool.take(&2, Http1).is_none());
    assert!(is_closed(idle).await && is_closed(used).await);
}

#[tokio::test]
async fn a_connection_is_used_for_as_long_as_what_its_ends_proved_holds() {
    let pool = Pool::new(LIMITS);
    let hour = Duration::from_secs(3600);
    let _far = keep(&pool, 1, Some(SystemTime::now() + hour)).await;
    let ended = keep(&pool, 2, Some(SystemTime::now() - hour)).await;
    pool.take(&1, Http1).unwrap().give_back();
    assert!(pool.take(&1, Http1).is_some());
    assert!(pool.take(&2, Http1).is_none());
    pool.sweep();
    assert!(is_closed(ended).await);
}

#[tokio::test]
async fn connections_are_bounded_in_all_and_by_key_and_by_time() {
    let pool = Pool::new(LIMITS);
    let mut far = Vec::new();
    for _ in 0..4 {
        far.push(keep(&pool, 1, None).await);
    }
    // The fourth is over the total.
    assert!(is_closed(far.remove(3)).await);
    pool.sweep();
    // A burst's connections stay a little longer.
    assert_eq!(pool.lock().total, 3);
    let lease = pool.take(&1, Http1).unwrap();
    lease.give_back();
    pool.sweep();
    assert_eq!(pool.lock().total, 1, "only the one that was used again is young enough");
    pool.sweep();
    assert_eq!(pool.lock().total, 0);
}

#[tokio::test]
async fn a_burst_of_one_key_leaves_room_for_connections_of_others() {
    let pool = Pool::new(PoolLimits { total: 8, ..LIMITS });
    let mut far = Vec::new();
    for _ in 0..20 {
        far.push(keep(&pool, 1, None).await);
    }
    assert_eq!(pool.lock().total, 6);
    let _others = (keep(&pool, 2, None).await, keep(&pool, 2, None).await);
    assert!(pool.take(&2, Http1).is_some());
}

#[tokio::test]
async fn the_longest_idle_over_the_cap_of_a_key_go_first() {
    let pool = Pool::new(PoolLimits {
        idle_time: Duration::from_secs(60),
        ..LIMITS
    });
    let first = keep(&pool, 1, None).await;
    let _others = (keep(&pool, 1, None).await, keep(&pool, 1, None).await);
    pool.sweep();
    assert_eq!(pool.lock().total, 3);
    pool.sweep();
    assert_eq!(pool.lock().total, 2);
    assert!(is_closed(first).await);
}

#[tokio::test]
async fn an_evicted_key_and_a_pool_that_keeps_none_have_nothing_to_take() {
    let pool = Pool::new(LIMITS);
    let far = keep(&pool, 1, None).await;
    pool.evict(&1);
    assert!(pool.take(&1, Http1).is_none());
    assert!(is_closed(far).await);
    let none = Pool::new(PoolLimits { per_key: 0, ..LIMITS });
    assert!(is_closed(keep(&none, 1, None).await).await);
}

#[tokio::test]
async fn one_cap_counts_for_both_versions_and_none_is_taken_for_the_other() {
    let pool = Pool::new(LIMITS);
    keep_http2(&pool, 1).await;
    assert!(pool.take(&1, Http1).is_none());
    pool.take(&1, Http2).unwrap().give_back();
    let _far = (keep(&pool, 1, None).await, keep(&pool, 1, None).await);
    assert_eq!(pool.lock().total, 3);
    keep_http2(&pool, 2).await;
    assert!(pool.take(&2, Http2).is_none(), "over the total");
    pool.sweep();
    pool.sweep();
    assert_eq!(pool.lock().total, 0);

    let pool = Pool::new(PoolLimits {
        idle_time: Duration::from_secs(60),
        ..LIMITS
    });
    keep_http2(&pool, 1).await;
    let _far = (keep(&pool, 1, None).await, keep(&pool, 1, None).await);
    pool.sweep();
    pool.sweep();
    assert_eq!(pool.lock().total, 2, "two of one key, whichever they speak");
    assert!(pool.take(&1, Http2).is_none(), "the longest idle goes first");
}
