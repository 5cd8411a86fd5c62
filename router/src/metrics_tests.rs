use super::*;
use crate::pods::PodCache;
use sandgate_mesh::telemetry::LineLog;
use std::collections::BTreeSet;

#[test]
fn the_reference_has_every_metric_and_no_other() {
    let registered = metrics::registered_by(|| {
        let all = Metrics::new().unwrap();
        // What only some routers have.
        all.scoped_token_reloads().unwrap();
        all.enrolment().unwrap();
        all.certificate_not_after().unwrap();
        all.https_certificate_not_after().unwrap();
        all.breakers().unwrap();
        all.oidc_refreshes().unwrap();
        crate::otlp::metrics_of(&all.registry).unwrap();
        PodCache::new("cluster.local".parse().unwrap(), false, &all.registry).unwrap();
        let log = LineLog::to(std::io::sink()).unwrap();
        log.register(&all.registry, "sandbox_router_dropped_log_lines_total")
            .unwrap();
    });
    let page = include_str!("../../docs/metrics.md");
    let rows: BTreeSet<String> = metrics::rows_of(page, "sandbox_router_").collect();
    let registered: BTreeSet<String> = registered.iter().map(ToString::to_string).collect();
    assert_eq!(rows, registered, "docs/metrics.md on the left");
}

#[test]
fn durations_are_counted_in_the_existing_routers_buckets() {
    let metrics = Metrics::new().unwrap();
    metrics.request("GET", StatusCode::OK, None, 100.0);
    let families = metrics.registry.gather();
    let family = families
        .iter()
        .find(|family| family.name() == "sandbox_router_request_duration_seconds");
    let histogram = family.unwrap().get_metric()[0].get_histogram();
    let buckets = histogram.get_bucket().iter();
    let counted: Vec<_> = buckets
        .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
        .collect();
    assert_eq!(counted.len(), 14);
    assert_eq!(counted[0], (0.005, 0));
    assert_eq!(counted[12..], [(60.0, 0), (180.0, 1)]);
}

/// What was never counted is absent, and then an alert on its increase misses the first.
#[test]
fn what_alerts_watch_is_there_before_it_happens() {
    let metrics = Metrics::new().unwrap();
    let _ = metrics.on_cert_reload();
    metrics.scoped_token_reloads().unwrap();
    metrics.oidc_refreshes().unwrap();
    metrics.reviews("token");
    let families = metrics.registry.gather();
    for (name, label) in [
        ("sandbox_router_cert_reloads_total", "failure"),
        ("sandbox_router_scoped_token_reloads_total", "failure"),
        ("sandbox_router_oidc_key_refreshes_total", "failure"),
        ("sandbox_router_oidc_key_refreshes_total", "success"),
        ("sandbox_router_reviews_total", "failed"),
        ("sandbox_router_reviews_total", "shed"),
        ("sandbox_router_refused_connections_total", "memory"),
    ] {
        let series = families
            .iter()
            .filter(|family| family.name() == name)
            .flat_map(prometheus::proto::MetricFamily::get_metric);
        let there = series
            .flat_map(prometheus::proto::Metric::get_label)
            .any(|pair| pair.value() == label);
        assert!(there, "{name} {label}");
    }
}
