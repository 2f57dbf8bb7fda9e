//! Names and help texts of this package's metrics.

use fanlight_ops::metrics::MetricDoc;

/// Metrics of the simulated device.
pub const METRICS: &[MetricDoc] = &[
    MetricDoc::counter(
        "fanlight_sim_scrcpy_sessions_opened_total",
        "scrcpy sessions whose sockets were all connected.",
    ),
    MetricDoc::counter("fanlight_sim_scrcpy_sessions_closed_total", "Such sessions that ended."),
    MetricDoc::counter(
        "fanlight_sim_control_errors_total",
        "scrcpy sessions ended by a control message that the server does not know.",
    ),
    MetricDoc::counter(
        "fanlight_sim_pictures_total",
        "Pictures captured, by any scrcpy session or screenrecord.",
    ),
    MetricDoc::counter("fanlight_sim_inputs_total", "Inputs received; label `source`."),
];
