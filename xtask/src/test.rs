//! The test command. Not where tests are: each package holds its own. Invariant: exit code 0
//! means every suite ran and passed.

use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::{
    deploy, setup,
    shell::{self, cmd, root, target},
};

/// An integration test of the package with the binary: cargo builds the one for the other.
const BINARY_TEST: &str = "demo";

/// Runs the suites.
pub(crate) fn run_suites(rust: bool, e2e: bool) -> Result<()> {
    setup::debian_packages()?;
    if rust {
        shell::run(&mut cmd("cargo", &["test", "--workspace", "--locked", "--no-fail-fast"]))?;
    }
    shell::run(&mut cmd("node", &["--test", "web/test/"]))?;
    if e2e {
        browser()?;
    }
    Ok(())
}

/// Runs the suites and prints what it took.
pub(crate) fn run(rust: bool, e2e: bool) -> Result<()> {
    let start = Instant::now();
    run_suites(rust, e2e)?;
    println!("all suites passed in {:.0} s", start.elapsed().as_secs_f32());
    Ok(())
}

fn browser() -> Result<()> {
    setup::node_packages()?;
    let python = setup::python()?;
    // As a part of its own tests, with `--workspace`: then its features are the ones that the tests
    // were built with, and nothing is built twice. A plain build would do without those of
    // development dependencies and compile half of everything again.
    let build = ["test", "--locked", "--workspace", "--no-run", "--test", BINARY_TEST];
    shell::run(&mut cmd("cargo", &build))?;
    deploy::check()?;
    let artefacts = target().join("e2e");
    std::fs::create_dir_all(&artefacts)?;
    let dir = root().join("fanlight/e2e");
    let mut suites: Vec<String> = std::fs::read_dir(&dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| n.ends_with(".test.mjs"))
        .collect();
    suites.sort();
    if suites.is_empty() {
        bail!("no end-to-end suites in {}", dir.display());
    }
    // One after the other: each drives a real browser or client and the machine has two cores.
    let mut node = cmd("node", &["--test", "--test-concurrency=1"]);
    node.args(&suites)
        .current_dir(&dir)
        .env("E2E_BIN", target().join("debug/fanlight"))
        .env("E2E_ARTEFACTS", &artefacts)
        .env("E2E_PYTHON", python);
    shell::run(&mut node)
}
