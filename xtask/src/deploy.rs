//! Holds `deploy/` to what the programs really are: alert rules by promtool and their own tests,
//! Kubernetes objects by the real schemas, configuration files by the programs that read them, and
//! every metric that a rule or a dashboard asks for by ops/METRICS.md, which `tidy` holds to the
//! code. Not a deployment. Invariant: a file of `deploy/` that nothing checks is named as such in
//! its README.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    dashboard, setup,
    shell::{cmd, has, root, run, target},
};

/// The schemas that Kubernetes objects are held to.
const KUBERNETES: &str = "1.31";

/// Runs all of it. The `fanlight` binary is built already.
pub(crate) fn check() -> Result<()> {
    metrics()?;
    dashboard::check()?;
    prometheus()?;
    kubernetes()?;
    configurations()?;
    units()
}

fn prometheus() -> Result<()> {
    let dir = root().join("deploy/prometheus");
    let promtool = |args: &[&str]| run(cmd("promtool", args).current_dir(&dir));
    promtool(&["check", "rules", "--lint-fatal", "fanlight.rules.yaml"])?;
    promtool(&["test", "rules", "fanlight.test.yaml"])?;
    promtool(&["check", "config", "scrape.yaml"])
}

fn kubernetes() -> Result<()> {
    let python = setup::python()?;
    let validate = python.with_file_name("kubernetes-validate");
    let files = files("deploy/k8s", "yaml")?;
    // A kustomization is for kubectl alone, which no schema describes.
    let objects = files.iter().filter(|f| !f.ends_with("kustomization.yaml"));
    let mut validate = cmd(&validate.to_string_lossy(), &["-k", KUBERNETES, "--strict"]);
    let said = validate.args(objects).output().context("start kubernetes-validate")?;
    let text = [said.stdout, said.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    print!("{text}");
    // A kind or version that no schema knows is a warning to it.
    ensure!(said.status.success() && !text.contains("WARN"), "Kubernetes objects: see above");
    Ok(())
}

/// Each file by its program, which reports all mistakes at once. `--check` binds nothing.
fn configurations() -> Result<()> {
    let fanlight = target().join("debug/fanlight");
    let check = |role: &str, file: &str| {
        let file = root().join("deploy").join(file);
        let config = ["--config", &file.to_string_lossy(), "--check"].map(str::to_owned);
        run(cmd(&fanlight.to_string_lossy(), &[role]).args(config))
    };
    check("control", "config/control.toml")?;
    check("control", "k8s/base/control.toml")?;
    check("router", "config/router.toml")?;
    check("router", "k8s/base/router.toml")?;
    check("ingest", "config/ingest.toml")
}

fn units() -> Result<()> {
    if !has("systemd-analyze") {
        println!("not checked: systemd units (systemd-analyze is missing)");
        return Ok(());
    }
    // The programs of the units are not installed here, so their absence is taken out of what is
    // verified: the path is that of this very machine's `true`.
    let dir = target().join("units");
    fs::create_dir_all(&dir)?;
    for unit in files("deploy/systemd", "service")? {
        let text = fs::read_to_string(&unit)?.replace("/usr/bin/fanlight", "/usr/bin/true");
        let copy = dir.join(unit.file_name().context("a unit has a name")?);
        fs::write(&copy, text)?;
        run(&mut cmd(
            "systemd-analyze",
            &["verify", "--man=no", "--recursive-errors=one", &copy.to_string_lossy()],
        ))?;
    }
    Ok(())
}

/// Every metric that is asked for exists.
fn metrics() -> Result<()> {
    let known = known_metrics()?;
    let rules = fs::read_to_string(root().join("deploy/prometheus/fanlight.rules.yaml"))?;
    let recorded: BTreeSet<&str> =
        rules.lines().filter_map(|l| l.trim().strip_prefix("- record: ")).collect();
    let mut files = files("deploy/prometheus", "yaml")?;
    files.extend(self::files("deploy/grafana", "json")?);
    let mut unknown = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        for name in names(&text) {
            if !is_known(name, &known) && !recorded.contains(name) {
                unknown.insert(format!("{}: {name}", file.display()));
            }
        }
    }
    ensure!(unknown.is_empty(), "metrics that nothing exports: {unknown:?}");
    Ok(())
}

/// Names in the first column of ops/METRICS.md.
fn known_metrics() -> Result<BTreeSet<String>> {
    let page = fs::read_to_string(root().join("ops/METRICS.md"))?;
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let known: BTreeSet<String> = rows.map(|(name, _)| name.to_owned()).collect();
    ensure!(!known.is_empty(), "ops/METRICS.md has no table of metrics");
    Ok(known)
}

/// Whether a name is a metric, or one of a histogram's.
fn is_known(name: &str, known: &BTreeSet<String>) -> bool {
    let of = ["_bucket", "_sum", "_count"].iter().filter_map(|part| name.strip_suffix(part));
    known.contains(name) || of.into_iter().any(|base| known.contains(base))
}

/// Words that are names of our metrics, or (with colons) of recording rules.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    text.split(move |c| !is_part(c))
        .map(|word| word.trim_end_matches(':'))
        .filter(|word| word.starts_with("fanlight_") || word.starts_with("fanlight:"))
}

/// All files of a folder and below with this extension, in order.
fn files(dir: &str, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    collect(&root().join(dir), extension, &mut found)?;
    found.sort();
    if found.is_empty() {
        bail!("{dir} has no .{extension} files");
    }
    Ok(found)
}

fn collect(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, extension, found)?;
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_that_nothing_exports_is_found() {
        let known =
            BTreeSet::from(["fanlight_a_seconds".to_owned(), "fanlight_b_total".to_owned()]);
        let text = "rate(fanlight_b_total[1m]) + fanlight:c + fanlight_a_seconds_bucket{le=\"1\"}";
        let found: Vec<_> = names(text).collect();
        assert_eq!(found, ["fanlight_b_total", "fanlight:c", "fanlight_a_seconds_bucket"]);
        assert!(is_known(found[0], &known) && is_known(found[2], &known));
        assert!(!is_known(found[1], &known), "not a metric: a recording rule has to make it");
        assert!(!is_known("fanlight_b", &known) && !is_known("fanlight_a_seconds_max", &known));
    }

    #[test]
    fn what_is_deployed_asks_for_no_metric_that_does_not_exist() {
        metrics().unwrap();
    }
}
