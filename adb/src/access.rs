//! [`AdbDevice`]: one device, reached directly or through an adb server, with the same calls.
//!
//! Not here: connecting and reconnecting. Invariant: callers cannot tell the two ways apart, but
//! for speed.

use tokio::{io::AsyncRead, net::TcpListener};

use crate::{
    error::AdbError,
    features::FeatureSet,
    host::{self, AdbConnection},
    server::AdbServer,
    service::{
        reverse,
        shell::{self, ShellOutput, ShellStream},
        sync::{DirEntry, FileStat},
        sync_host::SyncClient,
    },
    stream::AdbStream,
};

/// A device.
#[derive(Debug, Clone)]
pub enum AdbDevice {
    /// Over our own connection to its adbd.
    Direct(AdbConnection),
    /// Through an adb server.
    Server {
        /// The server.
        server: AdbServer,
        /// The device's serial there.
        serial: String,
        /// What the device can do.
        features: FeatureSet,
    },
}

impl From<AdbConnection> for AdbDevice {
    fn from(connection: AdbConnection) -> Self {
        Self::Direct(connection)
    }
}

impl AdbDevice {
    /// The device behind `serial` of an adb server; asks the server for its features.
    pub async fn through_server(server: AdbServer, serial: &str) -> Result<Self, AdbError> {
        let features = server.features(serial).await?;
        Ok(Self::Server { server, serial: serial.to_owned(), features })
    }

    /// What both ends can do.
    #[must_use]
    pub fn features(&self) -> &FeatureSet {
        match self {
            Self::Direct(connection) => connection.features(),
            Self::Server { features, .. } => features,
        }
    }

    /// Opens a service by its name. A name nobody serves is [`AdbError::Refused`].
    pub async fn open(&self, service: &str) -> Result<AdbStream, AdbError> {
        match self {
            Self::Direct(connection) => connection.open(service).await,
            Self::Server { server, serial, .. } => server.open(serial, service).await,
        }
    }

    /// Runs a command to its end and returns what it printed (bounded).
    pub async fn shell(&self, command: &str) -> Result<ShellOutput, AdbError> {
        self.shell_stream(command).await?.collect().await
    }

    /// Runs a command and reads its output as it comes; dropping the stream ends it.
    pub async fn shell_stream(&self, command: &str) -> Result<ShellStream, AdbError> {
        let (service, v2) = shell::service_name(self.features(), command);
        Ok(ShellStream::new(self.open(&service).await?, v2))
    }

    /// Runs a command with its output untouched and its input open.
    pub async fn exec(&self, command: &str) -> Result<AdbStream, AdbError> {
        self.open(&format!("exec:{command}")).await
    }

    /// Connects to an abstract socket on the device; [`AdbError::Refused`] while nobody listens.
    pub async fn local_abstract(&self, name: &str) -> Result<AdbStream, AdbError> {
        self.open(&format!("localabstract:{name}")).await
    }

    /// Starts a sync session, for several requests in a row.
    pub async fn sync(&self) -> Result<SyncClient<AdbStream>, AdbError> {
        Ok(SyncClient::new(self.open("sync:").await?, self.features()))
    }

    /// Writes a file on the device; returns how many bytes it was.
    pub async fn sync_push(
        &self,
        remote: &str,
        mode: u32,
        source: impl AsyncRead + Unpin,
    ) -> Result<u64, AdbError> {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let mtime = since_1970.map_or(0, |t| u32::try_from(t.as_secs()).unwrap_or(u32::MAX));
        let mut sync = self.sync().await?;
        let pushed = sync.push(remote, mode, mtime, source).await?;
        sync.quit().await;
        Ok(pushed)
    }

    /// Reads a file of the device of at most `bytes_max` bytes.
    pub async fn sync_pull(&self, remote: &str, bytes_max: u64) -> Result<Vec<u8>, AdbError> {
        let mut sync = self.sync().await?;
        let mut file = Vec::new();
        sync.pull(remote, &mut file, bytes_max).await?;
        sync.quit().await;
        Ok(file)
    }

    /// What is at a path of the device; `None` when nothing is.
    pub async fn sync_stat(&self, remote: &str) -> Result<Option<FileStat>, AdbError> {
        let mut sync = self.sync().await?;
        let stat = sync.stat(remote).await?;
        sync.quit().await;
        Ok(stat)
    }

    /// The entries of a directory of the device.
    pub async fn sync_list(&self, remote: &str) -> Result<Vec<DirEntry>, AdbError> {
        let mut sync = self.sync().await?;
        let entries = sync.list(remote).await?;
        sync.quit().await;
        Ok(entries)
    }

    /// Asks the device to listen on `remote` and to bring each connection there to us.
    pub async fn reverse(&self, remote: &str) -> Result<ReverseListener, AdbError> {
        match self {
            Self::Direct(connection) => {
                connection.reverse(remote).await.map(ReverseListener::Direct)
            }
            Self::Server { .. } => {
                let failed = |source| AdbError::Io { doing: "listening for the device", source };
                let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
                let port = listener.local_addr().map_err(failed)?.port();
                let service = format!("reverse:forward:{remote};tcp:{port}");
                reverse::read_status(self.open(&service).await?).await?;
                Ok(ReverseListener::Server(listener))
            }
        }
    }

    /// Takes a reverse listener back on the device.
    pub async fn reverse_remove(&self, remote: &str) -> Result<(), AdbError> {
        let stream = self.open(&format!("reverse:killforward:{remote}")).await?;
        reverse::read_status(stream).await
    }
}

/// Streams a device opens towards us.
#[derive(Debug)]
pub enum ReverseListener {
    /// On our own connection.
    Direct(host::ReverseListener),
    /// Through an adb server, which dials us over TCP.
    Server(TcpListener),
}

impl ReverseListener {
    /// The next stream; `None` when no more can come.
    pub async fn accept(&mut self) -> Option<AdbStream> {
        match self {
            Self::Direct(listener) => listener.accept().await,
            Self::Server(listener) => {
                let (stream, _) = listener.accept().await.ok()?;
                host::prepare_socket(&stream).ok()?;
                Some(stream.into())
            }
        }
    }
}
