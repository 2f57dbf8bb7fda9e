//! Rules that no compiler checks: dependency direction, a header on every file, documented
//! metrics, words that have no place here. Not style: rustfmt and clippy do that. Invariant:
//! sizes are listed for a reader to think about and never fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::shell::{cmd, output, root};

/// Ours, and what each may use of ours (development dependencies aside).
const ARROWS: [(&str, &[&str]); 13] = [
    ("fanlight-proto", &[]),
    ("fanlight-wire", &[]),
    ("fanlight-adb", &[]),
    ("fanlight-ops", &["fanlight-proto"]),
    ("fanlight-device-sim", &["fanlight-adb", "fanlight-ops"]),
    ("fanlight-rtc", &["fanlight-wire"]),
    ("fanlight-router-core", &["fanlight-wire", "fanlight-rtc"]),
    (
        "fanlight-router",
        &["fanlight-router-core", "fanlight-wire", "fanlight-proto", "fanlight-ops"],
    ),
    (
        "fanlight-loadtest",
        &["fanlight-rtc", "fanlight-wire", "fanlight-proto", "fanlight-ops", "fanlight-device-sim"],
    ),
    ("fanlight-ingest", &["fanlight-adb", "fanlight-wire", "fanlight-proto", "fanlight-ops"]),
    ("fanlight-control", &["fanlight-proto", "fanlight-ops"]),
    (
        "fanlight",
        &[
            "fanlight-proto",
            "fanlight-ops",
            "fanlight-device-sim",
            "fanlight-ingest",
            "fanlight-router",
            "fanlight-control",
            "fanlight-loadtest",
        ],
    ),
    ("xtask", &[]),
];

/// Packages that must stay free of these crates.
const PURE: [(&str, &[&str]); 4] = [
    ("fanlight-rtc", &["tokio", "futures", "mio", "quinn", "prost", "tonic"]),
    ("fanlight-wire", &["tokio", "futures", "mio", "quinn", "prost", "tonic"]),
    ("fanlight-router-core", &["tokio", "futures", "mio", "quinn", "tonic", "prost", "redis"]),
    ("fanlight-ops", &["str0m", "openh264", "h264-reader"]),
];

/// Words that a file must not hold, with the reason.
const WORDS: [(&str, &str); 4] = [
    (concat!("registry.", "npmjs"), "host name of a package registry"),
    (concat!("static.", "crates.io"), "host name of a package registry"),
    (concat!("pypi", ".org"), "host name of a package registry"),
    (concat!("/work", "/"), "path of one machine"),
];

/// Runs all rules.
pub(crate) fn run() -> Result<()> {
    let files = tracked_files()?;
    let mut faults = Vec::new();
    dependencies(&mut faults)?;
    headers(&files, &mut faults)?;
    words(&files, &mut faults)?;
    metrics(&files, &mut faults)?;
    sizes(&files)?;
    if faults.is_empty() {
        println!("tidy: {} files, no fault", files.len());
        return Ok(());
    }
    for fault in &faults {
        println!("tidy: {fault}");
    }
    bail!("tidy found {} faults", faults.len())
}

fn tracked_files() -> Result<Vec<PathBuf>> {
    let list =
        output(&mut cmd("git", &["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    Ok(list.lines().map(PathBuf::from).filter(|f| root().join(f).is_file()).collect())
}

fn read(file: &Path) -> Result<Option<String>> {
    let bytes = fs::read(root().join(file)).with_context(|| format!("read {}", file.display()))?;
    Ok(String::from_utf8(bytes).ok())
}

fn has_ending(file: &Path, endings: &[&str]) -> bool {
    file.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e))
}

fn dependencies(faults: &mut Vec<String>) -> Result<()> {
    let json = output(&mut cmd("cargo", &["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&json)?;
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    for package in packages {
        let name = package["name"].as_str().context("package without a name")?;
        let Some(may) = allowed.get(name) else {
            faults.push(format!("package {name} has no line in the table of dependency arrows"));
            continue;
        };
        let used = package["dependencies"].as_array().into_iter().flatten();
        for d in used.filter(|d| d["kind"].as_str() != Some("dev")) {
            let dep = d["name"].as_str().unwrap_or_default();
            if ours.contains(dep) && !may.contains(&dep) {
                faults.push(format!("{name} must not depend on {dep}: arrows point down only"));
            }
            if PURE.iter().any(|(pure, bans)| *pure == name && bans.contains(&dep)) {
                faults.push(format!("{name} must not use {dep}"));
            }
        }
    }
    Ok(())
}

fn headers(files: &[PathBuf], faults: &mut Vec<String>) -> Result<()> {
    for file in files {
        let (start, what) = match file.extension().and_then(|e| e.to_str()) {
            Some("rs") => ("//!", "`//!`"),
            Some("mjs" | "js") => ("//", "a `//` comment"),
            Some("py") => ("\"\"\"", "a docstring"),
            _ => continue,
        };
        let Some(text) = read(file)? else { continue };
        let first = text.lines().find(|l| !l.starts_with("#!") && !l.is_empty()).unwrap_or("");
        if !first.starts_with(start) && !first.starts_with("/*") {
            faults.push(format!("{}: does not open with {what}", file.display()));
        }
    }
    Ok(())
}

fn words(files: &[PathBuf], faults: &mut Vec<String>) -> Result<()> {
    for file in files {
        let Some(text) = read(file)? else { continue };
        for (n, line) in text.lines().enumerate() {
            for (word, why) in WORDS {
                if line.contains(word) {
                    faults.push(format!("{}:{}: {why}", file.display(), n + 1));
                }
            }
        }
    }
    Ok(())
}

/// Every `fanlight_` metric named in code stands in ops/METRICS.md, and the other way round.
fn metrics(files: &[PathBuf], faults: &mut Vec<String>) -> Result<()> {
    let page = Path::new("ops/METRICS.md");
    let documented: BTreeSet<String> =
        names_in(&read(page).ok().flatten().unwrap_or_default(), '`').into_iter().collect();
    let mut used = BTreeMap::new();
    for file in files.iter().filter(|f| f.ends_with("metrics.rs")) {
        let Some(text) = read(file)? else { continue };
        let code = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
        for name in names_in(&code, '"') {
            used.entry(name).or_insert_with(|| file.clone());
        }
    }
    for (name, file) in &used {
        if !documented.contains(name) {
            faults.push(format!("{}: metric {name} is not in {}", file.display(), page.display()));
        }
    }
    for name in documented.iter().filter(|n| !used.contains_key(*n)) {
        faults.push(format!("{}: metric {name} is exported by nothing", page.display()));
    }
    Ok(())
}

/// `fanlight_<part>_<what>` names that stand between two `quote`s.
fn names_in(text: &str, quote: char) -> Vec<String> {
    let is_name = |p: &&str| p.starts_with("fanlight_") && p.matches('_').count() > 1;
    let pieces = text.split(quote).filter(is_name);
    pieces
        .filter(|p| p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        .map(str::to_owned)
        .collect()
}

fn sizes(files: &[PathBuf]) -> Result<()> {
    let mut long = Vec::new();
    for file in files.iter().filter(|f| has_ending(f, &["rs", "js", "mjs"])) {
        let lines = read(file)?.unwrap_or_default().lines().count();
        if lines > 800 {
            long.push((lines, file));
        }
    }
    long.sort();
    for (lines, file) in long.iter().rev() {
        println!("tidy: {} has {lines} lines; which concept is missing?", file.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_names_are_found_between_quotes_only() {
        let code = "name: \"fanlight_router_frames_total\", // fanlight_other\n\"fanlight_Bad\"";
        assert_eq!(names_in(code, '"'), ["fanlight_router_frames_total"]);
    }
}
