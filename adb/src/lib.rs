//! Async ADB: the transport between a host and an Android device, both ends of it.
//!
//! What it is not: it knows nothing of scrcpy, media or what commands mean, and it retries nothing.
//!
//! | layer | modules |
//! |---|---|
//! | bytes | [`packet`], [`features`], [`auth`], [`service::shell_v2`], [`service::sync`] |
//! | rules, pure | [`mux`] |
//! | tasks and sockets | `handshake`, `link`, [`AdbStream`], [`AdbConnection`], [`device`], [`server`] |
//! | what callers use | [`AdbDevice`] on the host, [`device::DeviceServices`] on the device |
//!
//! ```no_run
//! # async fn example() -> Result<(), fanlight_adb::AdbError> {
//! use fanlight_adb::{AdbConnection, AdbDevice, ConnectOptions};
//! let connection = AdbConnection::connect("127.0.0.1:5555", ConnectOptions::default()).await?;
//! let device = AdbDevice::from(connection);
//! println!("{}", device.shell("getprop ro.product.model").await?.text());
//! # Ok(())
//! # }
//! ```
//! Invariant: no byte from the other end makes this package panic, spin or grow without bound.

#![forbid(unsafe_code)]

mod access;
pub mod auth;
mod counters;
pub mod device;
mod error;
pub mod features;
mod handshake;
mod host;
mod link;
pub mod mux;
pub mod packet;
pub mod server;
pub mod service;
mod stream;

pub use access::{AdbDevice, ReverseListener};
pub use auth::{AdbKey, AdbPublicKey};
pub use counters::Counters;
pub use device::{
    AuthPolicy, ConnectionDropper, DeviceConnection, DeviceListener, DeviceOptions, DeviceServices,
    ServiceError, serve_connection,
};
pub use error::{AdbError, Blame, Disconnect, ProtocolError, StreamFailure};
pub use features::{DeviceBanner, FeatureSet};
pub use host::{AdbConnection, ConnectOptions};
pub use server::{AdbServer, DeviceEntry};
pub use service::{
    shell::{ShellEvent, ShellOutput, ShellStream},
    sync::{DirEntry, FileStat},
    sync_device::{FileSink, FileStore, MemoryStore},
    sync_host::SyncClient,
};
pub use stream::AdbStream;
