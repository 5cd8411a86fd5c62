use super::*;
use sandgate_mesh::telemetry::LineLog;
use std::collections::BTreeSet;

#[test]
fn the_reference_has_every_metric_and_no_other() {
    let registered = metrics::registered_by(|| {
        let all = Metrics::new().unwrap();
        let log = LineLog::to(std::io::sink()).unwrap();
        log.register(&all.registry, "sandgate_sidecar_dropped_log_lines_total")
            .unwrap();
    });
    let page = include_str!("../../../docs/metrics.md");
    let rows: BTreeSet<String> = metrics::rows_of(page, "sandgate_sidecar_").collect();
    let registered: BTreeSet<String> = registered.iter().map(ToString::to_string).collect();
    assert_eq!(rows, registered, "docs/metrics.md on the left");
}
