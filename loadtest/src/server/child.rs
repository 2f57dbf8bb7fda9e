//! One child process: started pinned, waited for by its ready file, its log kept, stopped by
//! SIGTERM and then by force. Invariant: the process ends with this value, whatever happens.

use std::{
    ffi::{OsStr, OsString},
    fs::OpenOptions,
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

/// What to start, and where: the same again gives the same process anew.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Executable with the role.
    pub executable: PathBuf,
    /// The role.
    pub role: &'static str,
    /// Name of this one among others of its role: of its files.
    pub name: String,
    /// Folder of its log and ready file.
    pub dir: PathBuf,
    /// Arguments behind the role.
    pub args: Vec<OsString>,
    /// CPUs; empty: any.
    pub cpus: Vec<usize>,
}

/// A running process.
#[derive(Debug)]
pub struct Child {
    name: String,
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
        Self::launch(&Launch {
            executable: executable.to_owned(),
            role,
            name: role.to_owned(),
            dir: dir.to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            cpus: cpus.to_vec(),
        })
    }

    /// Starts a process. One of the same name before it must have ended; its log goes on.
    ///
    /// # Errors
    /// The executable cannot be run.
    pub fn launch(launch: &Launch) -> anyhow::Result<Self> {
        let Launch { executable, role, name, dir, args, cpus } = launch;
        let ready = dir.join(format!("{name}-ready.json"));
        let log = dir.join(format!("{name}.log"));
        // What an earlier life of it said is not so any more.
        let _ = std::fs::remove_file(&ready);
        let file = OpenOptions::new().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("{}", log.display()))?;
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
        let process = parking_lot::Mutex::new(process);
        Ok(Self { name: name.clone(), process, pid, ready, log })
    }

    /// Sends it a signal; one that has ended gets none.
    pub fn signal(&self, signal: Signal) {
        // Until it has been waited for, nobody else has its process id.
        if let Some(pid) = self.process.lock().id().and_then(|id| i32::try_from(id).ok())
            && let Some(pid) = Pid::from_raw(pid)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills it and waits for its end.
    pub async fn kill(self) {
        let _ = self.process.into_inner().kill().await;
    }

    /// Where its log is.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the ready file; gives what stands in it.
    ///
    /// # Errors
    /// It ended, or did not get ready in time.
    pub async fn ready(&self) -> anyhow::Result<serde_json::Value> {
        let deadline = Instant::now() + READY;
        while !self.ready.exists() {
            let ended = self.process.lock().try_wait()?;
            anyhow::ensure!(ended.is_none(), self.epitaph());
            anyhow::ensure!(Instant::now() < deadline, "{} did not get ready", self.name);
            tokio::time::sleep(LOOK).await;
        }
        // It appears whole or not at all.
        let bytes = std::fs::read(&self.ready)?;
        serde_json::from_slice(&bytes).with_context(|| format!("{} ready file", self.name))
    }

    /// What its log says at the end.
    pub fn epitaph(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let from = log.len().saturating_sub(LOG_TAIL);
        let tail = log.get(from..).unwrap_or(&log);
        format!("the {} process; its log ends with:\n{tail}", self.name)
    }

    /// How often something stands in its log.
    pub fn log_count(&self, needle: &str) -> u64 {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.matches(needle).count() as u64
    }

    /// Asks it to end and waits; then forces it.
    pub async fn stop(self) {
        self.stop_within(END).await;
    }

    /// The same with another patience.
    pub async fn stop_within(self, limit: Duration) {
        let mut process = self.process.into_inner();
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(limit, process.wait()).await.is_err() {
            let _ = process.kill().await;
        }
    }
}
