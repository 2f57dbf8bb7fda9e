//! Tables for people and one JSON object for scripts, with the machine that it was measured on.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

/// Two digits after the point are more than any figure here is worth.
pub fn round(value: f64) -> Value {
    round_to(value, 100.0)
}

/// Rounds to whole parts of `parts`.
pub fn round_to(value: f64, parts: f64) -> Value {
    json!((value * parts).round() / parts)
}

/// CPUs of the machine, whatever this thread is pinned to.
pub fn cpus() -> usize {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines().filter(|l| l.starts_with("processor")).count()
}

/// What the figures depend on.
pub fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|l| l.strip_prefix("model name"));
    let model = model.map_or("", |l| l.trim_start_matches([' ', '\t', ':']));
    json!({
        "cpu": model,
        "cpus": cpus(),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}

/// Writes the object, if a file is named.
pub fn write(file: Option<&Path>, object: Map<String, Value>) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let text = serde_json::to_string_pretty(&Value::Object(object))?;
    std::fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))
}
