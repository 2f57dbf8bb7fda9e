//! Tables for people and one JSON object for scripts, with the machine that it was measured on.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

/// Two digits after the point are more than any figure here is worth.
pub fn round(value: f64) -> Value {
    json!((value * 100.0).round() / 100.0)
}

/// What the figures depend on.
pub fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|l| l.strip_prefix("model name"));
    let model = model.map_or("", |l| l.trim_start_matches([' ', '\t', ':']));
    json!({
        "cpu": model,
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}

/// Writes the object, if a file is named.
pub fn write(file: Option<&Path>, object: Map<String, Value>) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let text = serde_json::to_string_pretty(&Value::Object(object))?;
    std::fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))
}
