use super::*;
use crate::enrol::events::Events;
use crate::enrol::report::Report;
use crate::enrol::rotate_report::RotationReport;
use sandgate_mesh::telemetry::LineLog;
use std::collections::BTreeSet;
use std::sync::Arc;

#[tokio::test]
async fn the_reference_has_every_metric_and_no_other() {
    let client = crate::rig::unreachable();
    let registered = metrics::registered_by(|| {
        let all = Metrics::new().unwrap();
        all.follow_readiness(Arc::new(|| Ok(()))).unwrap();
        let log = LineLog::to(std::io::sink()).unwrap();
        log.register(&all.registry, "sandgate_injector_dropped_log_lines_total")
            .unwrap();
        RotationReport::new(&all.registry).unwrap();
        let (events, _publisher) = Events::new(&all.registry, client).unwrap();
        Report::new(&all.registry, log, events).unwrap();
    });
    let page = include_str!("../../docs/metrics.md");
    let rows: BTreeSet<String> = metrics::rows_of(page, "sandgate_injector_").collect();
    let registered: BTreeSet<String> = registered.iter().map(ToString::to_string).collect();
    assert_eq!(rows, registered, "docs/metrics.md on the left");
}
