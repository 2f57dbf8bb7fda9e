//! What the device offers over ADB: shells, file transfer, abstract sockets, reverse tunnels.
//!
//! The transport is `fanlight-adb`'s; here a service name becomes a running service. Invariant: a
//! name that nobody serves is refused at the OPEN, as a real adbd does, never accepted and dropped.

mod commands;
mod input_command;
mod output;
mod picture;
mod process;
pub(crate) mod shell;

use std::sync::Arc;

use fanlight_adb::AdbStream;
use fanlight_adb::device::{DeviceConnection, DeviceServices, ServiceError};
use fanlight_adb::features::{DeviceBanner, FeatureSet};
use fanlight_adb::service::sync_device::{self, MemoryStore};
use fanlight_adb::service::{reverse, shell_v2};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::capture::Feed;
use crate::device::Device;
use crate::scrcpy::ScrcpyVersion;
use crate::scrcpy::server::ServerContext;
use crate::scrcpy::sockets::{Dial, Socket, Sockets};
use output::Output;

/// Bytes that pushed files may take together; a scrcpy server has 100 KB, an app some tens of MB.
const MAX_FILE_BYTES: usize = 256 * 1024 * 1024;

/// The services of one device.
#[derive(Debug, Clone)]
pub struct Services {
    server: ServerContext,
    files: MemoryStore,
    /// The only server version to play, or any.
    version: Option<ScrcpyVersion>,
}

impl Services {
    /// Services of this device. `version` limits which scrcpy server it plays.
    #[must_use]
    pub fn new(
        device: Arc<Device>,
        feed: Feed,
        fps: f32,
        bitrate_bps: u32,
        version: Option<ScrcpyVersion>,
    ) -> Self {
        let sockets = Sockets::default();
        let server = ServerContext { device, sockets, feed, fps, bitrate_bps };
        Self { server, files: MemoryStore::new(MAX_FILE_BYTES), version }
    }

    /// The pushed files.
    #[must_use]
    pub fn files(&self) -> &MemoryStore {
        &self.files
    }

    fn device(&self) -> &Arc<Device> {
        &self.server.device
    }

    async fn serve(
        &self,
        connection: DeviceConnection,
        service: &str,
        mut stream: AdbStream,
    ) -> std::io::Result<()> {
        match Service::parse(service) {
            Some(Service::Shell { v2, command }) => self.shell(stream, v2, command).await,
            Some(Service::Sync) => sync_device::serve(stream, &self.files).await,
            Some(Service::Abstract(name)) => {
                // `accepts` has just looked; if the listener went away since, the stream closes.
                self.server.sockets.connect(name, Box::new(stream));
                Ok(())
            }
            Some(Service::Reverse(request)) => {
                let answer = self.reverse(connection, request);
                stream.write_all(&answer).await?;
                stream.shutdown().await
            }
            None => Ok(()),
        }
    }

    /// Runs a command until it is done or the host closes the stream, which kills it.
    async fn shell(&self, stream: AdbStream, v2: bool, command: &str) -> std::io::Result<()> {
        let (mut read, write) = tokio::io::split(stream);
        let mut output =
            if v2 { Output::V2(shell_v2::Writer::new(write)) } else { Output::Raw(write) };
        let closed = async {
            // Commands here read no input; what is read is dropped, so that the host never blocks.
            let mut unread = [0; 4096];
            while matches!(read.read(&mut unread).await, Ok(n) if n > 0) {}
        };
        let code = tokio::select! {
            code = shell::run(self, command, &mut output) => code?,
            () = closed => return Ok(()),
        };
        output.exit(code).await
    }

    fn reverse(&self, connection: DeviceConnection, request: &str) -> Vec<u8> {
        let sockets = &self.server.sockets;
        match request.split_once(':').unwrap_or((request, "")) {
            ("forward", pair) => {
                let pair = pair.strip_prefix("norebind:").unwrap_or(pair);
                let Some((here, there)) = pair.split_once(';') else {
                    return reverse::refused("bad forward: no target");
                };
                let Some(name) = here.strip_prefix("localabstract:") else {
                    return reverse::refused("only localabstract is simulated");
                };
                match sockets.add_reverse(name, there, dial_back(connection, there.to_owned())) {
                    true => reverse::ACCEPTED.to_vec(),
                    false => reverse::refused("too many reverse tunnels"),
                }
            }
            ("killforward-all", _) => {
                sockets.clear_reverses();
                reverse::ACCEPTED.to_vec()
            }
            ("killforward", here) => {
                let name = here.strip_prefix("localabstract:").unwrap_or(here);
                match sockets.remove_reverse(name) {
                    true => reverse::ACCEPTED.to_vec(),
                    false => reverse::refused(&format!("listener '{here}' not found")),
                }
            }
            ("list-forward", _) => {
                let lines: String = sockets
                    .reverses()
                    .iter()
                    .map(|(name, to)| format!("host-1 localabstract:{name} {to}\n"))
                    .collect();
                // No OKAY here: the adb server has already said that the service is open.
                format!("{:04x}{lines}", lines.len()).into_bytes()
            }
            _ => reverse::refused("unknown reverse request"),
        }
    }
}

/// Opens the target of a reverse tunnel on the host.
fn dial_back(connection: DeviceConnection, to: String) -> Dial {
    Arc::new(move || {
        let (connection, to) = (connection.clone(), to.clone());
        async move {
            let stream = connection.open(&to).await.map_err(std::io::Error::other)?;
            let socket: Socket = Box::new(stream);
            Ok(socket)
        }
        .boxed()
    })
}

impl DeviceServices for Services {
    fn banner(&self) -> DeviceBanner {
        let identity = self.device().identity();
        DeviceBanner {
            product: identity.product.clone(),
            model: identity.model.clone(),
            device: identity.product.clone(),
            features: FeatureSet::device_default(),
        }
    }

    fn accepts(&self, service: &str) -> bool {
        match Service::parse(service) {
            Some(Service::Abstract(name)) => self.server.sockets.accepts(name),
            other => other.is_some(),
        }
    }

    fn open<'a>(
        &'a self,
        connection: DeviceConnection,
        service: String,
        stream: AdbStream,
    ) -> BoxFuture<'a, Result<(), ServiceError>> {
        async move { Ok(self.serve(connection, &service, stream).await?) }.boxed()
    }
}

/// A service name, understood.
#[derive(Debug, PartialEq, Eq)]
enum Service<'a> {
    Shell { v2: bool, command: &'a str },
    Sync,
    Abstract(&'a str),
    Reverse(&'a str),
}

impl<'a> Service<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (head, rest) = name.split_once(':')?;
        let mut arguments = head.split(',');
        match arguments.next()? {
            "shell" => Some(Self::Shell { v2: arguments.any(|a| a == "v2"), command: rest }),
            "exec" => Some(Self::Shell { v2: false, command: rest }),
            "sync" => Some(Self::Sync),
            "localabstract" => Some(Self::Abstract(rest)),
            "reverse" => Some(Self::Reverse(rest)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_names_are_understood() {
        let shell = |v2, command| Some(Service::Shell { v2, command });
        assert_eq!(Service::parse("shell,v2,TERM=xterm,raw:ls"), shell(true, "ls"));
        assert_eq!(Service::parse("shell:echo a:b"), shell(false, "echo a:b"));
        assert_eq!(Service::parse("exec:screencap -p"), shell(false, "screencap -p"));
        assert_eq!(Service::parse("sync:"), Some(Service::Sync));
        assert_eq!(Service::parse("localabstract:x"), Some(Service::Abstract("x")));
        assert_eq!(Service::parse("tcp:80"), None);
        assert_eq!(Service::parse("shell"), None);
    }
}
