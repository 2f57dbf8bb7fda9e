//! A redis-server of the load test's own, on loopback and in a folder of its own. Not a client of
//! Redis: it says three words to it. Invariant: the process ends with this value.

use std::{net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use super::{free_port, pin};

/// Time to serve, loading what it wrote before included.
const READY: Duration = Duration::from_secs(20);
/// How often it is asked.
const LOOK: Duration = Duration::from_millis(10);

/// A running Redis.
#[derive(Debug)]
pub struct Redis {
    dir: PathBuf,
    cpus: Vec<usize>,
    at: SocketAddr,
    // Killed when dropped.
    process: tokio::process::Child,
}

impl Redis {
    /// Starts one that writes every change to its log, and waits until it answers.
    ///
    /// # Errors
    /// There is no redis-server, or it does not serve in time.
    pub async fn start(dir: PathBuf, cpus: &[usize]) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
        let at = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let process = spawn(&dir, at, cpus)?;
        let this = Self { dir, cpus: cpus.to_vec(), at, process };
        this.serves().await?;
        Ok(this)
    }

    /// Its address as the control API's `store`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.at)
    }

    /// Its process id; 0 when it is not running.
    pub fn pid(&self) -> u32 {
        self.process.id().unwrap_or(0)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) =
            self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills it.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.process.kill().await?)
    }

    /// Starts it again at the same address with what it wrote.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        let _ = self.process.kill().await;
        self.process = spawn(&self.dir, self.at, &self.cpus)?;
        self.serves().await
    }

    /// Says one command; gives the first line of the answer.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn say(&self, command: &str) -> anyhow::Result<String> {
        let mut tcp = TcpStream::connect(self.at).await?;
        tcp.write_all(format!("{command}\r\n").as_bytes()).await?;
        let mut answer = [0; 256];
        let n = tcp.read(&mut answer).await?;
        let text = String::from_utf8_lossy(answer.get(..n).unwrap_or_default()).into_owned();
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }

    async fn serves(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY;
        // While it loads, it answers -LOADING.
        while !self.say("PING").await.is_ok_and(|answer| answer == "+PONG") {
            anyhow::ensure!(Instant::now() < deadline, "redis-server does not serve in {READY:?}");
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

fn spawn(
    dir: &std::path::Path,
    at: SocketAddr,
    cpus: &[usize],
) -> anyhow::Result<tokio::process::Child> {
    let mut command = tokio::process::Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &at.port().to_string()]);
    command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]);
    command.arg("--dir").arg(dir).arg("--logfile").arg(dir.join("redis.log"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    pin::inherited(cpus, || command.spawn()).context("cannot start redis-server")
}
