//! `app_process`: starting the scrcpy server from a pushed file.
//!
//! Invariant: the version that runs is the version of the pushed file, so a client with another one
//! is refused exactly as by the real server.

use tokio::io::AsyncWrite;

use super::Services;
use super::output::Output;
use super::shell::Command;
use crate::scrcpy::ScrcpyVersion;
use crate::scrcpy::server::{self, Log};

/// The server's class; nothing else can be run.
const SERVER_CLASS: &str = "com.genymobile.scrcpy.Server";
/// What a shell reports for a process that aborted.
const ABORTED: u8 = 134;

/// Runs `CLASSPATH=FILE app_process / CLASS ARGUMENTS...`.
pub(super) async fn app_process<W: AsyncWrite + Unpin + Send>(
    services: &Services,
    command: &Command,
    output: &mut Output<W>,
) -> std::io::Result<u8> {
    // Options for the virtual machine may stand before the folder.
    let mut args = command.args().iter().skip_while(|a| a.starts_with('-')).skip(1);
    let class = args.next().map_or("", String::as_str);
    if class != SERVER_CLASS {
        output.stderr(format!("Error: Could not find class {class}\nAborted\n").as_bytes()).await?;
        return Ok(ABORTED);
    }
    let version = match find_version(services, command.variable("CLASSPATH").unwrap_or_default()) {
        Ok(version) => version,
        Err(why) => {
            output.stderr(format!("{why}\nAborted\n").as_bytes()).await?;
            return Ok(ABORTED);
        }
    };
    let args: Vec<String> = args.cloned().collect();
    let (log, mut lines) = Log::new();
    let server = server::run(&services.server, version, &args, log);
    tokio::pin!(server);
    let code = loop {
        tokio::select! {
            code = &mut server => break code,
            Some(line) = lines.recv() => output.stdout(line.as_bytes()).await?,
        }
    };
    while let Ok(line) = lines.try_recv() {
        output.stdout(line.as_bytes()).await?;
    }
    Ok(code)
}

/// Which server the class path holds.
fn find_version(services: &Services, path: &str) -> Result<ScrcpyVersion, String> {
    let missing = || {
        format!(
            "java.lang.ClassNotFoundException: Didn't find class \"{SERVER_CLASS}\" on path: \"{path}\""
        )
    };
    let file = services.files().get(path).ok_or_else(missing)?;
    let version = ScrcpyVersion::of_jar(&file).ok_or_else(missing)?;
    // A device that is set to play one version plays it whatever was pushed.
    Ok(services.version.unwrap_or(version))
}
