//! Builds and runs the benchmarks of the media path. Not their code: `router/benches` holds it,
//! and the fields of each JSON object stand at the top of the file there. Invariant: a benchmark
//! that could not measure fails the command and writes no file.
//!
//! Where root and `tc` allow it, `limit` and `fanout` run a second time in a network namespace
//! whose loopback device swallows everything (field `blackhole`, null where it cannot be had):
//! that is the cost of sending alone, without the receive path of loopback.
//!
//! `--against` names the executable of the same benchmark from another checkout (each run prints
//! its own). Both run in turns; `against` then holds the other's figures and `ratio_to_against`,
//! by field, this one's divided by them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use crate::shell::{cmd, has, output, run, target};

/// How often each side of a comparison runs.
const TURNS: usize = 3;
/// Starts a program where what is sent to the loopback device is dropped by its queue.
const IN_BLACKHOLE: &str =
    r#"ip link set lo up && tc qdisc add dev lo root blackhole && exec "$0" "$@""#;

/// What is run, and what becomes of the figures.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Which benchmark.
    which: Which,
    /// Write one JSON object to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Executable of the same benchmark from another checkout, to compare with.
    #[arg(long)]
    against: Option<PathBuf>,
    /// Passed on to the benchmark.
    #[arg(last = true)]
    rest: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    /// The floor: seal and send, nothing else.
    Limit,
    /// One frame to many viewers, by the router's own code.
    Fanout,
    /// Offers, answers and handshakes.
    Join,
    /// Frames from an ingest worker.
    Ingest,
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Fanout => "fanout",
            Self::Join => "join",
            Self::Ingest => "ingest",
        }
    }

    /// Whether it sends to sockets that nobody reads, so that a blackhole changes nothing else.
    fn can_run_in_blackhole(self) -> bool {
        matches!(self, Self::Limit | Self::Fanout)
    }
}

type Object = Map<String, Value>;

/// Builds, runs, reports.
pub(crate) fn run_bench(options: &Options) -> Result<()> {
    let mine = build(options.which)?;
    println!("executable: {}", mine.display());
    let mut object = match &options.against {
        None => measure(&mine, options)?,
        Some(other) => compare(&mine, other, options)?,
    };
    if options.which.can_run_in_blackhole() {
        let blackhole = in_blackhole(&mine, options)?;
        object.insert("blackhole".into(), blackhole.map_or(Value::Null, Value::Object));
    }
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&Value::Object(object))?;
        fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn build(which: Which) -> Result<PathBuf> {
    let args = ["build", "--release", "-p", "fanlight-router", "--bench", which.name()];
    let messages = output(cmd("cargo", &args).arg("--message-format=json-render-diagnostics"))?;
    let executable = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|m| m["target"]["name"] == which.name())
        .find_map(|m| m["executable"].as_str().map(PathBuf::from));
    executable.context("cargo built no executable for this benchmark")
}

/// One run of one executable.
fn measure(executable: &Path, options: &Options) -> Result<Object> {
    let program = executable.to_str().context("the path of the executable is not UTF-8")?;
    measure_by(&mut cmd(program, &[]), executable, options)
}

/// Runs `command`, which ends in running the benchmark, and reads what it has written.
fn measure_by(command: &mut Command, executable: &Path, options: &Options) -> Result<Object> {
    let file = target().join(format!("bench-{}-{}.json", options.which.name(), std::process::id()));
    command.args(["--bench", "--json"]).arg(&file).args(&options.rest);
    let measured = run(command).and_then(|()| read(&file));
    // It may not exist, when the benchmark failed.
    let _ = fs::remove_file(&file);
    measured.with_context(|| format!("{} could not measure", executable.display()))
}

fn read(file: &Path) -> Result<Object> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    match serde_json::from_str(&text)? {
        Value::Object(object) => Ok(object),
        _ => bail!("{} holds no object", file.display()),
    }
}

/// Runs once more where the loopback device drops everything. None where that cannot be had.
fn in_blackhole(executable: &Path, options: &Options) -> Result<Option<Object>> {
    let tools = ["unshare", "ip", "tc"];
    if let Some(missing) = tools.iter().find(|tool| !has(tool)) {
        println!("no figures for a blackhole: {missing} is missing");
        return Ok(None);
    }
    let wrap = ["-n", "sh", "-c", IN_BLACKHOLE];
    let probe = cmd("unshare", &wrap).arg("true").output()?;
    if !probe.status.success() {
        let why = String::from_utf8_lossy(&probe.stderr);
        println!("no figures for a blackhole: {}", why.trim());
        return Ok(None);
    }
    println!("the same where the loopback device drops everything:");
    measure_by(cmd("unshare", &wrap).arg(executable), executable, options).map(Some)
}

/// Both in turns; the figures are medians over the turns.
fn compare(mine: &Path, other: &Path, options: &Options) -> Result<Object> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        ours.push(measure(mine, options)?);
        theirs.push(measure(other, options)?);
    }
    let (our_figures, their_figures) = (medians(&ours), medians(&theirs));
    let mut ratios = Object::new();
    println!("{:<44} {:>12} {:>12} {:>8}", "", "this", "against", "ratio");
    for (field, value) in &our_figures {
        let Some(against) = their_figures.get(field) else { continue };
        let ratio = value / against;
        println!("{field:<44} {value:>12.2} {against:>12.2} {ratio:>8.3}");
        if ratio.is_finite() {
            ratios.insert(field.clone(), json!((ratio * 1_000.0).round() / 1_000.0));
        }
    }
    if ratios.is_empty() {
        bail!("{} has no figure in common with this benchmark", other.display());
    }
    // The last run's object with the medians in place of its own figures.
    let mut object = ours.pop().context("no run")?;
    replace(&mut object, "", &our_figures);
    let mut against = theirs.pop().context("no run")?;
    replace(&mut against, "", &their_figures);
    against.insert("executable".into(), json!(other.display().to_string()));
    object.insert("against".into(), Value::Object(against));
    object.insert("ratio_to_against".into(), Value::Object(ratios));
    Ok(object)
}

/// The median of each number, by its path.
fn medians(runs: &[Object]) -> BTreeMap<String, f64> {
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for run in runs {
        numbers(run, "", &mut |path, value| all.entry(path).or_default().push(value));
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    all.into_iter().map(|(path, values)| (path, median(values))).collect()
}

fn numbers(object: &Object, prefix: &str, found: &mut impl FnMut(String, f64)) {
    for (name, value) in object {
        let path = format!("{prefix}{name}");
        match value {
            Value::Object(inner) => numbers(inner, &format!("{path}."), &mut *found),
            // Whole numbers are settings.
            Value::Number(n) if n.is_f64() => found(path, n.as_f64().unwrap_or(f64::NAN)),
            _ => {}
        }
    }
}

fn replace(object: &mut Object, prefix: &str, figures: &BTreeMap<String, f64>) {
    for (name, value) in object {
        let path = format!("{prefix}{name}");
        match value {
            Value::Object(inner) => replace(inner, &format!("{path}."), figures),
            Value::Number(n) if n.is_f64() => {
                if let Some(figure) = figures.get(&path) {
                    *value = json!(figure);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn medians_are_taken_by_path_and_put_back() {
        let runs: Vec<Object> = [3.5, 1.25, 2.25]
            .iter()
            .map(|n| object(json!({ "a": n, "deep": { "b": n * 2.0 }, "n": 7, "s": "x" })))
            .collect();
        let figures = medians(&runs);
        assert_eq!(figures["a"], 2.25);
        assert_eq!(figures["deep.b"], 4.5);
        let mut last = runs[0].clone();
        replace(&mut last, "", &figures);
        assert_eq!(last, object(json!({ "a": 2.25, "deep": { "b": 4.5 }, "n": 7, "s": "x" })));
    }
}
