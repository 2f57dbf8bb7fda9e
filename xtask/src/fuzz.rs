//! Runs the fuzz targets of all packages. Not their code: each package keeps its own in `fuzz/`.
//! Invariant: a finding fails the command and leaves its input in the package's
//! `fuzz/artifacts`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

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
            let limits =
                ["--", &time, "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"];
            shell::run(cargo_fuzz().args(["run", &target]).args(limits).current_dir(&dir))
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

/// `cargo fuzz` by a nightly toolchain; where there is none, by the present one, told to take the
/// compiler flags that it needs.
fn cargo_fuzz() -> Command {
    let has_nightly = output(&mut cmd("rustup", &["toolchain", "list"]))
        .is_ok_and(|list| list.lines().any(|name| name.starts_with("nightly")));
    let mut command = cmd("cargo", if has_nightly { &["+nightly", "fuzz"] } else { &["fuzz"] });
    if !has_nightly {
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    command
}

fn targets(package: &Path) -> Result<Vec<String>> {
    let fuzz: PathBuf = package.join("fuzz");
    if !fuzz.is_dir() {
        return Ok(Vec::new());
    }
    let list = output(cargo_fuzz().arg("list").current_dir(package))?;
    Ok(list.lines().map(str::to_owned).collect())
}
