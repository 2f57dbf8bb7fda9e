//! Writes the Grafana dashboard from one table of panels. Not the metrics themselves. Invariant:
//! `deploy/grafana/fanlight.json` is what this table makes of itself; a test says so.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::shell::root;

/// A row of panels, for one question that an operator has.
struct Row {
    question: &'static str,
    panels: &'static [Panel],
}

/// One diagram: title, unit in Grafana's words, and what is drawn: expression and legend.
struct Panel {
    title: &'static str,
    unit: &'static str,
    lines: &'static [(&'static str, &'static str)],
}

const ROWS: &[Row] = &[
    Row {
        question: "Do people see their devices?",
        panels: &[
            Panel { title: "Viewers", unit: "short", lines: &[("fanlight:viewers", "{{node}}")] },
            Panel {
                title: "Join, p95",
                unit: "s",
                lines: &[("fanlight:join_seconds:p95", "{{node}}")],
            },
            Panel {
                title: "Joins refused",
                unit: "reqps",
                lines: &[(
                    "sum by (node, reason) (rate(fanlight_router_joins_denied_total[1m]))",
                    "{{node}} {{reason}}",
                )],
            },
            Panel {
                title: "Sessions that ended, by reason",
                unit: "reqps",
                lines: &[(
                    "sum by (reason) (rate(fanlight_router_sessions_closed_total[1m]))",
                    "{{reason}}",
                )],
            },
        ],
    },
    Row {
        question: "Is it as quick as a local screen?",
        panels: &[
            Panel {
                title: "Added latency in the router, p99",
                unit: "µs",
                lines: &[("fanlight:added_latency_us:p99", "{{node}}")],
            },
            Panel {
                title: "The same for those who control, p99",
                unit: "µs",
                lines: &[(
                    "histogram_quantile(0.99, sum by (node, le) \
                     (rate(fanlight_router_added_latency_within_total{role=\"controller\"}[5m])))",
                    "{{node}}",
                )],
            },
            Panel {
                title: "Oldest frame that a router has not acknowledged, p95",
                unit: "s",
                lines: &[(
                    "histogram_quantile(0.95, sum by (instance, le) \
                     (rate(fanlight_ingest_unacked_age_seconds_bucket[5m])))",
                    "{{instance}}",
                )],
            },
            Panel {
                title: "Input to devices",
                unit: "ops",
                lines: &[
                    (
                        "sum by (node) (rate(fanlight_router_inputs_forwarded_total[1m]))",
                        "{{node}}",
                    ),
                    (
                        "sum by (node) (rate(fanlight_router_inputs_denied_rate_total[1m]))",
                        "{{node}} too fast",
                    ),
                ],
            },
        ],
    },
    Row {
        question: "Is something lost?",
        panels: &[
            Panel {
                title: "Packets sent again",
                unit: "percentunit",
                lines: &[("fanlight:repair_ratio", "{{node}}")],
            },
            Panel {
                title: "Keyframes: wanted, from the cache, asked of encoders",
                unit: "ops",
                lines: &[
                    ("sum(rate(fanlight_router_keyframes_wanted_total[1m]))", "wanted"),
                    ("sum(rate(fanlight_router_keyframes_from_cache_total[1m]))", "from the cache"),
                    ("sum(rate(fanlight_router_keyframe_requests_total[1m]))", "asked for"),
                ],
            },
            Panel {
                title: "Frames kept back from narrow viewers",
                unit: "ops",
                lines: &[
                    ("sum by (node) (rate(fanlight_router_frames_thinned_total[1m]))", "{{node}}"),
                    (
                        "sum by (node) (rate(fanlight_router_pressure_stopped_total[1m]))",
                        "{{node}} stopped",
                    ),
                ],
            },
            Panel {
                title: "Frames dropped",
                unit: "ops",
                lines: &[
                    (
                        "sum by (node, reason) (rate(fanlight_router_hop_frames_dropped_total[1m]))",
                        "{{node}} hop {{reason}}",
                    ),
                    (
                        "sum by (node) (rate(fanlight_router_inbox_frames_dropped_total[1m]))",
                        "{{node}} inbox",
                    ),
                    (
                        "sum by (instance) (rate(fanlight_ingest_frames_reset_total[1m]))",
                        "{{instance}} uplink",
                    ),
                ],
            },
        ],
    },
    Row {
        question: "How much more can it take?",
        panels: &[
            Panel {
                title: "Shards, thousandths of a CPU",
                unit: "short",
                lines: &[("fanlight_router_shard_busy_permille", "{{node}} {{shard}}")],
            },
            Panel {
                title: "Egress",
                unit: "bps",
                lines: &[("fanlight:egress_bits_per_second", "{{node}}")],
            },
            Panel {
                title: "Resident memory",
                unit: "bytes",
                lines: &[("fanlight_process_resident_bytes", "{{job}} {{instance}}")],
            },
            Panel {
                title: "CPU",
                unit: "percentunit",
                lines: &[(
                    "rate(fanlight_process_cpu_milliseconds_total[1m]) / 1000",
                    "{{job}} {{instance}}",
                )],
            },
        ],
    },
    Row {
        question: "Is the fleet whole?",
        panels: &[
            Panel {
                title: "Nodes",
                unit: "short",
                lines: &[("sum by (state) (fanlight_control_nodes)", "{{state}}")],
            },
            Panel {
                title: "Streams",
                unit: "short",
                lines: &[("sum by (state) (fanlight_control_streams)", "{{state}}")],
            },
            Panel {
                title: "Devices offline",
                unit: "short",
                lines: &[(
                    "fanlight_ingest_devices - fanlight_ingest_devices_online",
                    "{{instance}}",
                )],
            },
            Panel {
                title: "gRPC, p99",
                unit: "s",
                lines: &[(
                    "histogram_quantile(0.99, sum by (method, le) \
                     (rate(fanlight_control_call_seconds_bucket[5m])))",
                    "{{method}}",
                )],
            },
        ],
    },
];

const PANELS_PER_ROW: usize = 4;
const WIDTH: usize = 24 / PANELS_PER_ROW;
const HEIGHT: usize = 8;

fn file() -> PathBuf {
    root().join("deploy/grafana/fanlight.json")
}

/// Writes the file.
pub(crate) fn write() -> Result<()> {
    fs::write(file(), text()?).with_context(|| format!("write {}", file().display()))
}

/// Fails when the file is another one.
pub(crate) fn check() -> Result<()> {
    let there = fs::read_to_string(file()).unwrap_or_default();
    ensure!(there == text()?, "{} is stale: cargo xtask dashboard", file().display());
    Ok(())
}

fn text() -> Result<String> {
    Ok(serde_json::to_string_pretty(&dashboard())? + "\n")
}

fn dashboard() -> Value {
    let mut panels = Vec::new();
    for (n, row) in ROWS.iter().enumerate() {
        let y = n * (HEIGHT + 1);
        let id = panels.len() + 1;
        panels.push(json!({
            "id": id, "type": "row", "title": row.question, "collapsed": false, "panels": [],
            "gridPos": { "x": 0, "y": y, "w": 24, "h": 1 },
        }));
        for (i, panel) in row.panels.iter().enumerate() {
            let place = json!({ "x": i * WIDTH, "y": y + 1, "w": WIDTH, "h": HEIGHT });
            panels.push(diagram(id + 1 + i, panel, &place));
        }
    }
    json!({
        "title": "Fanlight", "uid": "fanlight", "tags": ["fanlight"], "schemaVersion": 39,
        "editable": true, "refresh": "10s", "time": { "from": "now-1h", "to": "now" },
        "templating": { "list": [
            { "name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus" },
        ] },
        "panels": panels,
    })
}

fn diagram(id: usize, panel: &Panel, place: &Value) -> Value {
    let source = json!({ "type": "prometheus", "uid": "${source}" });
    let names = ["A", "B", "C", "D"];
    let targets: Vec<Value> = panel
        .lines
        .iter()
        .zip(names)
        .map(|((expr, legend), name)| {
            json!({ "refId": name, "datasource": source, "expr": expr, "legendFormat": legend })
        })
        .collect();
    json!({
        "id": id, "type": "timeseries", "title": panel.title, "datasource": source,
        "gridPos": place, "targets": targets,
        "fieldConfig": {
            "defaults": { "unit": panel.unit, "min": 0, "custom": { "fillOpacity": 8 } },
            "overrides": [],
        },
        "options": { "legend": { "displayMode": "list", "placement": "bottom" } },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_what_the_table_says() {
        check().unwrap();
    }

    #[test]
    fn every_panel_has_a_place_and_a_name_of_its_own() {
        assert!(ROWS.iter().all(|row| row.panels.len() <= PANELS_PER_ROW));
        let value = dashboard();
        let panels = value["panels"].as_array().unwrap();
        let mut ids: Vec<u64> = panels.iter().map(|p| p["id"].as_u64().unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), panels.len());
    }
}
