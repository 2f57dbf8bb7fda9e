//! Every metric this package emits. Not a registry. Invariant: a name used anywhere in this package
//! stands in [`METRICS`].

use fanlight_ops::metrics::MetricDoc;

/// Names and help texts.
pub const METRICS: &[MetricDoc] = &[
    MetricDoc::gauge("fanlight_ingest_devices", "Devices configured."),
    MetricDoc::gauge("fanlight_ingest_devices_online", "Devices reachable and capturable."),
    MetricDoc::counter("fanlight_ingest_adb_connects_opened_total", "ADB connections made."),
    MetricDoc::counter(
        "fanlight_ingest_adb_connects_closed_total",
        "ADB connections lost or given up.",
    ),
    MetricDoc::counter(
        "fanlight_ingest_adb_connects_failed_total",
        "ADB connections that could not be made.",
    ),
    MetricDoc::counter(
        "fanlight_ingest_captures_opened_total",
        "Captures started; label `source`.",
    ),
    MetricDoc::counter("fanlight_ingest_captures_closed_total", "Captures ended; label `source`."),
    MetricDoc::counter(
        "fanlight_ingest_bitrate_changes_total",
        "Times that a device was asked for another bitrate, because of its uplink.",
    ),
    MetricDoc::counter("fanlight_ingest_pictures_total", "Access units taken from devices."),
    MetricDoc::counter(
        "fanlight_ingest_pictures_dropped_total",
        "Access units not taken: no keyframe yet, or malformed.",
    ),
    MetricDoc::counter("fanlight_ingest_frames_sent_total", "Frames handed to the uplink."),
    MetricDoc::counter(
        "fanlight_ingest_frames_reset_total",
        "Frames cancelled because the uplink was behind.",
    ),
    MetricDoc::counter(
        "fanlight_ingest_frames_skipped_total",
        "Frames not sent while a keyframe was waited for.",
    ),
    MetricDoc::counter("fanlight_ingest_sent_bytes_total", "Bytes of frames handed to the uplink."),
    MetricDoc::histogram(
        "fanlight_ingest_unacked_age_seconds",
        "Age of the oldest frame the router has not acknowledged, sampled once a second per publish.",
    ),
    MetricDoc::counter(
        "fanlight_ingest_keyframe_requests_total",
        "Keyframes asked for by routers or by the rate rule.",
    ),
    MetricDoc::counter(
        "fanlight_ingest_encoder_resets_total",
        "Device encoders started anew for a keyframe.",
    ),
    MetricDoc::counter("fanlight_ingest_input_total", "Input operations queued for devices."),
    MetricDoc::counter(
        "fanlight_ingest_input_refused_total",
        "Input operations dropped; label `reason`.",
    ),
    MetricDoc::counter("fanlight_ingest_hop_dials_total", "Connections to routers attempted."),
    MetricDoc::counter(
        "fanlight_ingest_hop_connections_opened_total",
        "Connections welcomed by a router.",
    ),
    MetricDoc::counter(
        "fanlight_ingest_hop_connections_closed_total",
        "Welcomed connections that ended.",
    ),
    MetricDoc::counter(
        "fanlight_ingest_hop_unexpected_total",
        "Control messages of routers that fit no slot or no state.",
    ),
    MetricDoc::counter("fanlight_ingest_publishes_opened_total", "Publishes accepted by a router."),
    MetricDoc::counter("fanlight_ingest_publishes_closed_total", "Accepted publishes that ended."),
    MetricDoc::counter(
        "fanlight_ingest_publishes_rejected_total",
        "Publishes rejected by a router.",
    ),
];
