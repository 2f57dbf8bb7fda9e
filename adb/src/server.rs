//! A client of a running adb server (port 5037): devices, tracking, services through it.
//!
//! ```text
//!  request: 4 hex digits of length | text        answer: OKAY … | FAIL, 4 hex digits, message
//! ```
//! Not here: starting a server. Invariant: one TCP connection per request or service, as the server
//! wants it; lengths from it are bounded by their four digits (64 KiB).

use std::{fmt, time::Duration};

use futures::Stream;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    error::{AdbError, clip},
    features::FeatureSet,
    host::prepare_socket,
    stream::AdbStream,
};

/// Where an adb server listens unless told otherwise.
pub const DEFAULT_PORT: u16 = 5037;
/// Longest request the four digits can carry.
const REQUEST_MAX: usize = 0xffff;

/// One line of the server's device list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceEntry {
    /// What `adb -s` takes.
    pub serial: String,
    /// `device` when usable; `offline`, `unauthorized`, ... otherwise.
    pub state: String,
    /// Product, if the list was asked for in long form.
    pub product: Option<String>,
    /// Model, likewise.
    pub model: Option<String>,
    /// Device, likewise.
    pub device: Option<String>,
}

impl DeviceEntry {
    /// Whether services can be opened.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.state == "device"
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let serial = words.next()?.to_owned();
        let state = words.next()?.to_owned();
        let mut entry = Self { serial, state, ..Self::default() };
        for (name, value) in words.filter_map(|word| word.split_once(':')) {
            let slot = match name {
                "product" => &mut entry.product,
                "model" => &mut entry.model,
                "device" => &mut entry.device,
                _ => continue,
            };
            *slot = Some(value.to_owned());
        }
        Some(entry)
    }

    /// Reads a device list; lines that are none are left out.
    #[must_use]
    pub fn parse_list(text: &str) -> Vec<Self> {
        text.lines().filter_map(Self::parse).collect()
    }
}

/// An adb server somewhere.
#[derive(Debug, Clone)]
pub struct AdbServer {
    addr: String,
    /// Bound on connecting and on each short answer.
    timeout: Duration,
}

impl Default for AdbServer {
    fn default() -> Self {
        Self::new(format!("127.0.0.1:{DEFAULT_PORT}"))
    }
}

impl AdbServer {
    /// The server at `host:port`.
    #[must_use]
    pub fn new(addr: impl fmt::Display) -> Self {
        Self { addr: addr.to_string(), timeout: Duration::from_secs(10) }
    }

    /// Another bound on connecting and on each short answer.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The devices it knows, with product, model and device.
    pub async fn devices(&self) -> Result<Vec<DeviceEntry>, AdbError> {
        Ok(DeviceEntry::parse_list(&self.ask("host:devices-l").await?))
    }

    /// Tells the server to connect to a device over TCP; its words on how that went.
    pub async fn connect_device(&self, addr: &str) -> Result<String, AdbError> {
        self.ask(&format!("host:connect:{addr}")).await
    }

    /// The features the device behind `serial` shares with the server.
    pub async fn features(&self, serial: &str) -> Result<FeatureSet, AdbError> {
        let list = self.ask(&format!("host-serial:{serial}:features")).await?;
        Ok(FeatureSet::parse(list.trim()))
    }

    /// The device list now and after each change, until the server goes away.
    pub async fn track_devices(
        &self,
    ) -> Result<impl Stream<Item = Result<Vec<DeviceEntry>, AdbError>> + Send + use<>, AdbError>
    {
        let mut stream = self.dial().await?;
        self.bounded(request(&mut stream, "host:track-devices")).await?;
        let next = |stream: Option<TcpStream>| async move {
            let mut stream = stream?;
            match read_text(&mut stream).await {
                Ok(text) => Some((Ok(DeviceEntry::parse_list(&text)), Some(stream))),
                Err(error) => Some((Err(error), None)),
            }
        };
        Ok(futures::stream::unfold(Some(stream), next))
    }

    /// Opens a service on the device behind `serial`.
    pub async fn open(&self, serial: &str, service: &str) -> Result<AdbStream, AdbError> {
        let mut stream = self.dial().await?;
        self.bounded(request(&mut stream, &format!("host:transport:{serial}"))).await?;
        match self.bounded(request(&mut stream, service)).await {
            Ok(()) => Ok(stream.into()),
            // The server's word for a CLSE in answer to OPEN.
            Err(AdbError::Server { message }) if message == "closed" => {
                Err(AdbError::Refused { service: service.to_owned() })
            }
            Err(error) => Err(error),
        }
    }

    async fn ask(&self, what: &str) -> Result<String, AdbError> {
        let mut stream = self.dial().await?;
        self.bounded(async {
            request(&mut stream, what).await?;
            read_text(&mut stream).await
        })
        .await
    }

    async fn dial(&self) -> Result<TcpStream, AdbError> {
        self.bounded(async {
            let failed = |source| AdbError::Connect { addr: self.addr.clone(), source };
            let stream = TcpStream::connect(&self.addr).await.map_err(failed)?;
            prepare_socket(&stream).map_err(failed)?;
            Ok(stream)
        })
        .await
    }

    async fn bounded<T>(
        &self,
        work: impl Future<Output = Result<T, AdbError>>,
    ) -> Result<T, AdbError> {
        let done = tokio::time::timeout(self.timeout, work).await;
        done.unwrap_or(Err(AdbError::Timeout("waiting for the adb server")))
    }
}

/// Sends a request and reads OKAY or FAIL.
async fn request(stream: &mut TcpStream, what: &str) -> Result<(), AdbError> {
    if what.len() > REQUEST_MAX {
        return Err(AdbError::BadServiceName("longer than an adb server takes"));
    }
    let bytes = format!("{:04x}{what}", what.len());
    stream
        .write_all(bytes.as_bytes())
        .await
        .map_err(|source| AdbError::Io { doing: "writing to the adb server", source })?;
    let mut status = [0; 4];
    read(stream, &mut status).await?;
    match &status {
        b"OKAY" => Ok(()),
        b"FAIL" => Err(AdbError::Server { message: read_text(stream).await? }),
        _ => Err(AdbError::BadReply { service: "adb server", what: clip(&status) }),
    }
}

/// Reads four hex digits of length and that much text.
async fn read_text(stream: &mut TcpStream) -> Result<String, AdbError> {
    let mut digits = [0; 4];
    read(stream, &mut digits).await?;
    let len = parse_length(digits)
        .ok_or_else(|| AdbError::BadReply { service: "adb server", what: clip(&digits) })?;
    let mut text = vec![0; len];
    read(stream, &mut text).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn parse_length(digits: [u8; 4]) -> Option<usize> {
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    usize::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()
}

async fn read(stream: &mut TcpStream, into: &mut [u8]) -> Result<(), AdbError> {
    let read = stream.read_exact(into).await;
    read.map(|_| ()).map_err(|source| AdbError::Io { doing: "reading from the adb server", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_lists_are_read_in_both_forms() {
        let long = "127.0.0.1:4001         device product:fake model:Fan_Light device:sim \
                    transport_id:1\nemulator-5554\toffline\n\n";
        let entries = DeviceEntry::parse_list(long);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].serial, "127.0.0.1:4001");
        assert!(entries[0].is_usable());
        assert_eq!(entries[0].model.as_deref(), Some("Fan_Light"));
        assert_eq!(entries[1].state, "offline");
        assert!(DeviceEntry::parse_list("").is_empty());
    }

    #[test]
    fn lengths_are_four_hex_digits_and_nothing_else() {
        assert_eq!(parse_length(*b"00ff"), Some(255));
        for bad in [*b"+0ff", *b" 0ff", *b"-001", *b"zzzz", [0xff; 4]] {
            assert_eq!(parse_length(bad), None);
        }
    }
}
