//! One child process: started pinned, waited for by its ready file, its log kept, stopped by
//! SIGTERM and then by force. Invariant: the process ends with this value, whatever happens.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use super::pin;

/// Time to get ready: a debug build on a busy machine.
const READY: Duration = Duration::from_secs(30);
/// How often the ready file is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// Time to end after SIGTERM.
const END: Duration = Duration::from_secs(5);
/// Bytes of the log's end that an error shows.
const LOG_TAIL: usize = 2_000;

/// A running process.
#[derive(Debug)]
pub struct Child {
    role: &'static str,
    // Killed when dropped.
    process: parking_lot::Mutex<tokio::process::Child>,
    pid: u32,
    ready: PathBuf,
    log: PathBuf,
}

impl Child {
    /// Starts a role in a folder of its own.
    ///
    /// # Errors
    /// The executable cannot be run.
    pub(super) fn start(
        executable: &Path,
        role: &'static str,
        dir: &Path,
        args: &[&OsStr],
        cpus: &[usize],
    ) -> anyhow::Result<Self> {
        let ready = dir.join(format!("{role}-ready.json"));
        let log = dir.join(format!("{role}.log"));
        let file = File::create(&log).with_context(|| format!("{}", log.display()))?;
        let mut command = tokio::process::Command::new(executable);
        command.arg(role).args(args).arg("--ready-json").arg(&ready);
        // Settings of whoever runs the test are not part of it.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FANLIGHT_")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).kill_on_drop(true);
        let what = || format!("cannot start {} {role}", executable.display());
        let process = pin::inherited(cpus, || command.spawn()).with_context(what)?;
        let pid = process.id().with_context(what)?;
        Ok(Self { role, process: parking_lot::Mutex::new(process), pid, ready, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the ready file.
    pub(super) async fn ready(&self) -> anyhow::Result<serde_json::Value> {
        let deadline = Instant::now() + READY;
        while !self.ready.exists() {
            let ended = self.process.lock().try_wait()?;
            anyhow::ensure!(ended.is_none(), self.epitaph());
            anyhow::ensure!(Instant::now() < deadline, "{} did not get ready", self.role);
            tokio::time::sleep(LOOK).await;
        }
        // It appears whole or not at all.
        let bytes = std::fs::read(&self.ready)?;
        serde_json::from_slice(&bytes).with_context(|| format!("{} ready file", self.role))
    }

    /// What its log says at the end.
    pub fn epitaph(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let from = log.len().saturating_sub(LOG_TAIL);
        let tail = log.get(from..).unwrap_or(&log);
        format!("the {} process; its log ends with:\n{tail}", self.role)
    }

    /// How often something stands in its log.
    pub fn log_count(&self, needle: &str) -> u64 {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.matches(needle).count() as u64
    }

    /// Asks it to end and waits; then forces it.
    pub async fn stop(self) {
        let mut process = self.process.into_inner();
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(END, process.wait()).await.is_err() {
            let _ = process.kill().await;
        }
    }
}
