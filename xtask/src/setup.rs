//! Installs what the tests need and the machine lacks. Not for what the product needs: that is
//! Rust, a C/C++ compiler and make. Invariant: what cannot be installed is named in one line
//! together with the command a person would type.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::shell::{cmd, has, output, root, run, target};

/// Program looked for, Debian package that brings it.
const PACKAGES: [(&str, &str); 6] = [
    ("adb", "adb"),
    ("chromium", "chromium"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("promtool", "prometheus"),
    ("python3", "python3-venv"),
];

/// Debian packages whose programs are missing.
pub(crate) fn debian_packages() -> Result<()> {
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(program, _)| !has(program)).map(|&(_, package)| package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let wanted = missing.join(" ");
    if !has("apt-get") {
        bail!("the tests need these Debian packages or their like: {wanted}");
    }
    if output(&mut cmd("id", &["-u"]))?.trim() != "0" {
        bail!("the tests need Debian packages; install them: sudo apt-get install {wanted}");
    }
    run(cmd("apt-get", &["-qq", "update"]).env("DEBIAN_FRONTEND", "noninteractive"))?;
    let mut args = vec!["-qq", "install", "-y", "--no-install-recommends"];
    args.extend(&missing);
    run(cmd("apt-get", &args).env("DEBIAN_FRONTEND", "noninteractive"))
        .with_context(|| format!("install by hand: apt-get install {wanted}"))
}

/// Node packages of the browser tests, from their lock file.
pub(crate) fn node_packages() -> Result<()> {
    let dir = root().join("fanlight/e2e");
    let stamp = target().join("e2e/node.lock");
    let lock = std::fs::read(dir.join("package-lock.json"))?;
    if dir.join("node_modules").is_dir() && std::fs::read(&stamp).is_ok_and(|old| old == lock) {
        return Ok(());
    }
    run(cmd("npm", &["ci", "--no-progress", "--ignore-scripts"]).current_dir(&dir))?;
    std::fs::create_dir_all(target().join("e2e"))?;
    Ok(std::fs::write(stamp, lock)?)
}

/// A Python environment with the third-party WHEP client and the schemas of Kubernetes; gives its
/// interpreter.
pub(crate) fn python() -> Result<PathBuf> {
    let venv = target().join("e2e/venv");
    let python = venv.join("bin/python");
    let wanted = root().join("fanlight/e2e/requirements.txt");
    let stamp = venv.join("requirements.txt");
    let text = std::fs::read(&wanted)?;
    if !std::fs::read(&stamp).is_ok_and(|old| old == text) {
        let venv = venv.to_string_lossy();
        run(&mut cmd("python3", &["-m", "venv", "--clear", &venv]))
            .context("install by hand: apt-get install python3-venv")?;
        let args = ["-m", "pip", "install", "-q", "--disable-pip-version-check", "-r"];
        run(cmd(&python.to_string_lossy(), &args).arg(&wanted))?;
        std::fs::write(stamp, text)?;
    }
    Ok(python)
}
