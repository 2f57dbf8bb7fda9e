//! What must hold before a change is taken, short of the tests. Not the tests themselves.
//! Invariant: warnings are errors here and nowhere else.

use anyhow::Result;

use crate::{
    shell::{self, cmd, has},
    tidy,
};

/// Runs all checks.
pub(crate) fn run() -> Result<()> {
    shell::run(&mut cmd("cargo", &["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    shell::run(&mut cmd("cargo", &clippy))?;
    shell::run(
        cmd("cargo", &["doc", "--workspace", "--no-deps", "--locked", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    tidy::run()?;
    if has("cargo-deny") {
        // Advisories need a database from outside; licences, bans and sources do not.
        shell::run(&mut cmd("cargo", &["deny", "check", "licenses", "bans", "sources"]))?;
    } else {
        println!("not checked: licences and bans (install: cargo install --locked cargo-deny)");
    }
    Ok(())
}
