//! Runs the fuzz targets of all packages. Not their code: each package keeps its own in `fuzz/`.
//! Invariant: a finding fails the command and leaves its input in the package's
//! `fuzz/artifacts`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, cmd, has, output, root};

const PACKAGES: [&str; 7] =
    ["wire", "rtc", "adb", "device-sim", "router/core", "router", "ingest-worker"];

/// Runs each target for `seconds`.
pub(crate) fn run(seconds: u64, only: Option<&str>) -> Result<()> {
    if !has("cargo-fuzz") {
        bail!("cargo-fuzz is missing; install it: cargo install --locked cargo-fuzz");
    }
    let mut ran = 0;
    for package in PACKAGES {
        let dir = root().join(package);
        for target in targets(&dir)? {
            let name = format!("{package}/{target}");
            if only.is_some_and(|o| !name.contains(o)) {
                continue;
            }
            println!("== {name}");
            let time = format!("-max_total_time={seconds}");
            let args = ["+nightly", "fuzz", "run", &target, "--", &time, "-rss_limit_mb=2048"];
            shell::run(
                cmd("cargo", &args)
                    .args(["-print_final_stats=1", "-verbosity=0"])
                    .current_dir(&dir),
            )
            .with_context(|| format!("fuzz target {name}"))?;
            ran += 1;
        }
    }
    if ran == 0 {
        bail!("no fuzz target matches");
    }
    println!("{ran} fuzz targets ran {seconds} s each without a finding");
    Ok(())
}

fn targets(package: &Path) -> Result<Vec<String>> {
    let fuzz: PathBuf = package.join("fuzz");
    if !fuzz.is_dir() {
        return Ok(Vec::new());
    }
    let list = output(cmd("cargo", &["+nightly", "fuzz", "list"]).current_dir(package))?;
    Ok(list.lines().map(str::to_owned).collect())
}
