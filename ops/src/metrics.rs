//! The process's metrics registry and its Prometheus text. Not a place for any part's own names,
//! except those of this package. Invariant: one registry per process, and rendering it never
//! blocks a recording thread for longer than one copy of a histogram's bucket.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::process;

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Distribution; its name ends in its unit.
    Histogram,
}

/// Name and help text of one metric. Each package keeps its own in `metrics.rs` as
/// `pub const METRICS: &[MetricDoc]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricDoc {
    /// Full name: `fanlight_` in front, the unit in it.
    pub name: &'static str,
    /// Kind.
    pub kind: MetricKind,
    /// One sentence for the `# HELP` line, labels included.
    pub help: &'static str,
}

impl MetricDoc {
    /// A counter.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: MetricKind::Counter, help }
    }

    /// A gauge.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: MetricKind::Gauge, help }
    }

    /// A histogram.
    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: MetricKind::Histogram, help }
    }
}

/// Metrics of this package.
pub const METRICS: &[MetricDoc] = &[
    MetricDoc::gauge("fanlight_build_info", "Always 1; label `version`."),
    MetricDoc::gauge("fanlight_process_resident_bytes", "Resident memory of the process."),
    MetricDoc::gauge("fanlight_process_open_fds", "Open file descriptors of the process."),
    MetricDoc::gauge("fanlight_process_threads", "Threads of the process."),
    MetricDoc::gauge("fanlight_process_start_time_seconds", "Unix time of the process start."),
    MetricDoc::counter(
        "fanlight_process_cpu_milliseconds_total",
        "CPU time used, user and system.",
    ),
    MetricDoc::gauge("fanlight_runtime_tasks", "Tasks alive on the async runtime."),
    MetricDoc::counter("fanlight_nodelink_links_opened_total", "Links welcomed; label `node`."),
    MetricDoc::counter(
        "fanlight_nodelink_links_closed_total",
        "Welcomed links lost or ended; label `node`.",
    ),
    MetricDoc::counter(
        "fanlight_nodelink_dials_failed_total",
        "Dials that got no Welcome; label `node`.",
    ),
    MetricDoc::counter("fanlight_nodelink_heartbeats_total", "Heartbeats sent; label `node`."),
    MetricDoc::counter("fanlight_nodelink_applies_total", "Applies taken; label `node`."),
    MetricDoc::counter(
        "fanlight_nodelink_refusals_total",
        "Items of Applies refused; label `node`.",
    ),
    MetricDoc::counter("fanlight_nodelink_actions_total", "Actions done; label `node`."),
    MetricDoc::counter(
        "fanlight_nodelink_reports_dropped_total",
        "Report entries dropped at the bound while no link was up; label `node`.",
    ),
];

/// Buckets of histograms named `*_seconds`: 100 µs to 10 s, about three per decade, chosen so that
/// the promised limits (0.5 ms, 3 ms, 60 ms, 120 ms, 200 ms, 300 ms, 2 s) are bucket edges.
const SECONDS_BUCKETS: &[f64] = &[
    0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.03, 0.06, 0.12, 0.2, 0.3,
    0.5, 1.0, 2.0, 5.0, 10.0,
];

/// Buckets of histograms named `*_bytes`.
const BYTES_BUCKETS: &[f64] =
    &[256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0];

/// The process's registry.
pub struct Metrics {
    handle: PrometheusHandle,
}

static INSTALLED: OnceLock<Arc<Metrics>> = OnceLock::new();

impl Metrics {
    /// Installs the process's registry, or gives the one installed before.
    pub fn install() -> Arc<Self> {
        Arc::clone(INSTALLED.get_or_init(|| {
            let recorder = builder().build_recorder();
            let handle = recorder.handle();
            if metrics::set_global_recorder(recorder).is_err() {
                tracing::warn!("another metrics recorder was installed first; ours stays empty");
            }
            let this = Arc::new(Self { handle });
            this.describe(METRICS);
            this
        }))
    }

    /// Gives the help texts of a package's metrics. Calling it again changes nothing.
    pub fn describe(&self, docs: &[MetricDoc]) {
        for doc in docs {
            debug_assert!(doc.name.starts_with("fanlight_"), "{} lacks the prefix", doc.name);
            debug_assert_eq!(
                doc.kind == MetricKind::Counter,
                doc.name.ends_with("_total"),
                "{}: `_total` is for counters, all of them",
                doc.name
            );
            match doc.kind {
                MetricKind::Counter => metrics::describe_counter!(doc.name, doc.help),
                MetricKind::Gauge => metrics::describe_gauge!(doc.name, doc.help),
                MetricKind::Histogram => metrics::describe_histogram!(doc.name, doc.help),
            }
        }
    }

    /// The Prometheus text, process figures read now.
    pub fn render(&self) -> String {
        process::record();
        self.handle.run_upkeep();
        self.handle.render()
    }
}

fn builder() -> PrometheusBuilder {
    let seconds = Matcher::Suffix("_seconds".to_owned());
    let bytes = Matcher::Suffix("_bytes".to_owned());
    let with_buckets = PrometheusBuilder::new()
        .set_buckets_for_metric(seconds, SECONDS_BUCKETS)
        .and_then(|b| b.set_buckets_for_metric(bytes, BYTES_BUCKETS));
    // The only error is an empty bucket list, and both lists are constants with entries.
    with_buckets.unwrap_or_else(|_| PrometheusBuilder::new())
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_help_type_and_process_figures() {
        let metrics = Metrics::install();
        assert!(Arc::ptr_eq(&metrics, &Metrics::install()));
        metrics::counter!("fanlight_nodelink_applies_total", "node" => "n1").increment(2);
        metrics::histogram!("fanlight_test_seconds").record(0.0004);
        let text = metrics.render();
        assert!(text.contains("# TYPE fanlight_nodelink_applies_total counter"), "{text}");
        assert!(text.contains("# HELP fanlight_nodelink_applies_total Applies taken"), "{text}");
        assert!(text.contains("fanlight_nodelink_applies_total{node=\"n1\"} 2"), "{text}");
        assert!(text.contains("fanlight_test_seconds_bucket{le=\"0.0005\"} 1"), "{text}");
        let rss = text.lines().find(|l| l.starts_with("fanlight_process_resident_bytes ")).unwrap();
        assert!(rss.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 1e5, "{rss}");
    }

    #[test]
    fn names_follow_the_rules() {
        for doc in METRICS {
            assert!(doc.name.starts_with("fanlight_"));
            assert_eq!(
                doc.kind == MetricKind::Counter,
                doc.name.ends_with("_total"),
                "{}",
                doc.name
            );
            assert!(doc.help.ends_with('.'), "{}", doc.name);
        }
    }
}
