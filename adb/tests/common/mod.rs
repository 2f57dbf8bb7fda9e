//! A small device for tests: echo, shell in both forms, exec, sync, reverse, a source and a sink.
#![allow(clippy::unwrap_used, dead_code, reason = "test support, used in part by each test")]

use std::{sync::Arc, time::Duration};

use fanlight_adb::{
    AdbConnection, AdbStream, ConnectOptions, DeviceBanner, DeviceConnection, DeviceListener,
    DeviceOptions, DeviceServices, MemoryStore, ServiceError,
    service::{reverse, shell_v2::Writer, sync_device},
};
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

/// Bounds anything that must happen soon; reached only when a test is about to fail.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The services.
pub(crate) struct TestDevice {
    pub(crate) store: MemoryStore,
}

impl DeviceServices for TestDevice {
    fn banner(&self) -> DeviceBanner {
        DeviceBanner {
            product: "fanlight_test".into(),
            model: "Test Phone".into(),
            device: "test".into(),
            ..DeviceBanner::default()
        }
    }

    fn accepts(&self, service: &str) -> bool {
        let known = ["shell", "exec:", "sync:", "reverse:", "localabstract:echo", "test:"];
        known.iter().any(|prefix| service.starts_with(prefix))
    }

    fn open<'a>(
        &'a self,
        connection: DeviceConnection,
        service: String,
        stream: AdbStream,
    ) -> BoxFuture<'a, Result<(), ServiceError>> {
        Box::pin(self.serve(connection, service, stream))
    }
}

impl TestDevice {
    async fn serve(
        &self,
        connection: DeviceConnection,
        service: String,
        mut stream: AdbStream,
    ) -> Result<(), ServiceError> {
        let (name, argument) = service.split_once(':').unwrap_or((&service, ""));
        match name {
            "shell" => stream.write_all(run(argument).as_bytes()).await?,
            "exec" => {
                let mut input = Vec::new();
                if argument == "cat" {
                    return echo(stream).await;
                }
                input.extend_from_slice(run(argument).as_bytes());
                stream.write_all(&input).await?;
            }
            name if name.starts_with("shell,v2") => {
                let mut writer = Writer::new(stream);
                writer.stdout(run(argument).as_bytes()).await?;
                writer.stderr(b"complaint\n").await?;
                let code = argument.strip_prefix("exit ").map_or(0, |n| n.parse().unwrap());
                return Ok(writer.exit(code).await?);
            }
            "sync" => return Ok(sync_device::serve(stream, &self.store).await?),
            "localabstract" => return echo(stream).await,
            "reverse" => return reverse_service(connection, argument, stream).await,
            "test" if argument == "hold" => {
                // Reads nothing until the connection is over.
                connection.closed().await;
            }
            "test" if argument == "flood" => {
                let data = vec![0x5a; 256 * 1024];
                loop {
                    stream.write_all(&data).await?;
                }
            }
            "test" if argument == "greet and close" => stream.write_all(b"bye").await?,
            _ => return Err(ServiceError::Failed(format!("no such test service: {service}"))),
        }
        Ok(stream.shutdown().await?)
    }
}

fn run(command: &str) -> String {
    match command {
        "getprop ro.product.model" => "Test Phone\n".into(),
        other => format!("ran {other}\n"),
    }
}

async fn echo(stream: AdbStream) -> Result<(), ServiceError> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    tokio::io::copy(&mut reader, &mut writer).await?;
    Ok(())
}

async fn reverse_service(
    connection: DeviceConnection,
    argument: &str,
    mut stream: AdbStream,
) -> Result<(), ServiceError> {
    let Some((_, target)) = argument.strip_prefix("forward:").and_then(|a| a.split_once(';'))
    else {
        stream.write_all(&reverse::refused("only forward")).await?;
        return Ok(());
    };
    stream.write_all(reverse::ACCEPTED).await?;
    stream.shutdown().await?;
    let mut back =
        connection.open(target).await.map_err(|e| ServiceError::Failed(e.to_string()))?;
    back.write_all(b"hello from device").await?;
    let mut answer = [0; 2];
    back.read_exact(&mut answer).await?;
    back.write_all(&answer).await?;
    Ok(())
}

/// A device listening on loopback until dropped.
pub(crate) struct Running {
    pub(crate) addr: std::net::SocketAddr,
    pub(crate) store: MemoryStore,
    pub(crate) dropper: fanlight_adb::ConnectionDropper,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) async fn start(options: DeviceOptions) -> Running {
    let store = MemoryStore::new(64 * 1024 * 1024);
    let services = Arc::new(TestDevice { store: store.clone() });
    let listener =
        DeviceListener::bind("127.0.0.1:0".parse().unwrap(), services, options).await.unwrap();
    let (addr, dropper, stop) =
        (listener.local_addr(), listener.dropper(), CancellationToken::new());
    tokio::spawn(listener.run(stop.clone()));
    Running { addr, store, dropper, stop }
}

/// A device and a host connected to it, both with or without delayed acks.
pub(crate) async fn pair(delayed_ack: bool) -> (Running, AdbConnection) {
    let device = start(DeviceOptions { delayed_ack, ..DeviceOptions::default() }).await;
    let options = ConnectOptions { delayed_ack, ..ConnectOptions::default() };
    let connection = AdbConnection::connect(device.addr, options).await.unwrap();
    (device, connection)
}
