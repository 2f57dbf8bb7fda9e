//! What an experiment found: named figures for scripts, a table for people, samples over time,
//! plots. Not the measuring. Invariant: a figure that could not be measured is `null` with its name
//! under `not_measured`, and then the run has failed.

mod html;
mod plot;

use std::{
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde_json::{Map, Value, json};

pub use plot::{Plot, Series};

/// Where the findings go.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct OutputArgs {
    /// Write the figures to this file as one JSON object
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write samples over time to this file, a JSON object per line
    #[arg(long, value_name = "FILE")]
    pub jsonl: Option<PathBuf>,
    /// Write a report with plots to this file; it needs no other file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Succeed although a figure could not be measured; its name stands under `not_measured`
    #[arg(long)]
    pub allow_unmeasured: bool,
}

/// Everything that was found.
#[derive(Clone, Debug)]
pub struct Findings {
    command: &'static str,
    figures: Vec<(String, Value)>,
    details: Vec<(String, Value)>,
    not_measured: Vec<String>,
    faults: Vec<String>,
    warnings: Vec<String>,
    plots: Vec<Plot>,
    samples: Vec<Value>,
}

impl Findings {
    /// Nothing found yet.
    pub fn new(command: &'static str) -> Self {
        Self {
            command,
            figures: Vec::new(),
            details: Vec::new(),
            not_measured: Vec::new(),
            faults: Vec::new(),
            warnings: Vec::new(),
            plots: Vec::new(),
            samples: Vec::new(),
        }
    }

    /// A figure that is known, or a fact of the set-up.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.push((name.to_owned(), value.into()));
    }

    /// Something for scripts alone.
    pub fn detail(&mut self, name: &str, value: impl serde::Serialize) {
        let value = serde_json::to_value(value).unwrap_or(Value::Null);
        self.details.push((name.to_owned(), value));
    }

    /// A measured figure; `None` makes the run a failure.
    pub fn measured(&mut self, name: &str, value: Option<f64>) {
        match value.filter(|v| v.is_finite()) {
            Some(value) => self.set(name, rounded(value)),
            None => {
                self.not_measured.push(name.to_owned());
                self.set(name, Value::Null);
            }
        }
    }

    /// A figure that is nice to have; `None` is `null` and nothing more.
    pub fn optional(&mut self, name: &str, value: Option<f64>) {
        let value = value.filter(|v| v.is_finite()).map_or(Value::Null, rounded);
        self.set(name, value);
    }

    /// Something that makes the figures worthless, in a sentence.
    pub fn fault(&mut self, what: impl Into<String>) {
        self.faults.push(what.into());
    }

    /// Something that a reader of the figures has to know.
    pub fn warning(&mut self, what: impl Into<String>) {
        self.warnings.push(what.into());
    }

    /// A plot for the report.
    pub fn plot(&mut self, plot: Plot) {
        self.plots.push(plot);
    }

    /// Samples over time.
    pub fn samples(&mut self, samples: impl IntoIterator<Item = Value>) {
        self.samples.extend(samples);
    }

    /// The object for scripts.
    pub fn object(&self) -> Value {
        let mut object = Map::new();
        object.insert("command".to_owned(), json!(self.command));
        object.extend(self.figures.iter().chain(&self.details).cloned());
        object.insert("not_measured".to_owned(), json!(self.not_measured));
        object.insert("faults".to_owned(), json!(self.faults));
        object.insert("warnings".to_owned(), json!(self.warnings));
        Value::Object(object)
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let width = self.figures.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let mut table = format!("loadtest {}\n", self.command);
        for (name, value) in &self.figures {
            let value = match value {
                Value::Null => "not measured".to_owned(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let _ = writeln!(table, "  {name:width$}  {value}");
        }
        for fault in &self.faults {
            let _ = writeln!(table, "  ! {fault}");
        }
        for warning in &self.warnings {
            let _ = writeln!(table, "  ~ {warning}");
        }
        table
    }

    /// Prints the table, writes the files, and says whether the run counts.
    ///
    /// # Errors
    /// A file that cannot be written, a fault, a figure that could not be measured.
    pub fn publish(&self, args: &OutputArgs) -> anyhow::Result<()> {
        #[allow(clippy::print_stdout, reason = "the table is what the command is run for")]
        {
            print!("{}", self.table());
        }
        if let Some(path) = &args.json {
            write(path, &serde_json::to_vec_pretty(&self.object())?)?;
        }
        if let Some(path) = &args.jsonl {
            let mut lines = Vec::new();
            for sample in &self.samples {
                serde_json::to_writer(&mut lines, sample)?;
                lines.write_all(b"\n")?;
            }
            write(path, &lines)?;
        }
        if let Some(path) = &args.html {
            write(path, html::page(self).as_bytes())?;
        }
        anyhow::ensure!(self.faults.is_empty(), "{}", self.faults.join("; "));
        let missing = self.not_measured.join(", ");
        anyhow::ensure!(
            self.not_measured.is_empty() || args.allow_unmeasured,
            "could not measure: {missing}"
        );
        Ok(())
    }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// To what is worth reading: whole numbers stay whole, others get six digits behind the point.
fn rounded(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        #[expect(clippy::cast_possible_truncation, reason = "whole and below 10^15")]
        return json!(value as i64);
    }
    // Adding zero takes the sign from a zero.
    json!((value * 1e6).round() / 1e6 + 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Findings {
        let mut findings = Findings::new("fanout");
        findings.set("viewers", 10);
        findings.measured("added_latency_us_p50", Some(120.25));
        findings
    }

    #[test]
    fn the_object_holds_each_figure_by_its_name() {
        let object = findings().object();
        assert_eq!(object["command"], "fanout");
        assert_eq!(object["viewers"], 10);
        assert_eq!(object["added_latency_us_p50"], 120.25);
        assert_eq!(object["not_measured"], json!([]));
    }

    #[test]
    fn what_could_not_be_measured_fails_the_run_and_is_never_zero() {
        let dir = tempfile::tempdir().unwrap();
        let json = dir.path().join("out.json");
        let mut args = OutputArgs { json: Some(json.clone()), ..OutputArgs::default() };
        let mut findings = findings();
        assert!(findings.publish(&args).is_ok());
        findings.measured("lease_holder_latency_us_p99", None);
        findings.measured("burst_us", Some(f64::NAN));
        let error = findings.publish(&args).unwrap_err().to_string();
        assert!(error.contains("lease_holder_latency_us_p99, burst_us"), "{error}");
        // The file is written all the same.
        let written: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        assert_eq!(written["burst_us"], Value::Null);
        args.allow_unmeasured = true;
        assert!(findings.publish(&args).is_ok());
        findings.fault("our own sockets dropped 3 datagrams");
        assert!(findings.publish(&args).is_err(), "a fault cannot be waved through");
    }

    #[test]
    fn the_report_stands_alone_and_escapes_text() {
        let mut findings = findings();
        findings.set("source", "<b>&x");
        findings
            .plot(Plot::lines("CPU <1>", "s", "%").with("router", vec![(0.0, 1.0), (1.0, 2.0)]));
        findings.plot(Plot::bars("latency", "us", "packets").with("all", vec![(10.0, 5.0)]));
        let page = html::page(&findings);
        assert!(page.contains("&lt;b&gt;&amp;x") && page.contains("CPU &lt;1&gt;"));
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(!page.contains("http"), "nothing is loaded from elsewhere");
    }
}
