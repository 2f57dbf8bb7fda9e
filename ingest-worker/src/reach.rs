//! Reaching a device over ADB, directly or through an adb server, and learning that it is gone. Not
//! the retry (`life.rs` decides). Invariant: every error here is one line that says which device and
//! why.

use std::{error::Error, fmt::Write as _, path::Path, sync::Arc, time::Duration};

use fanlight_adb::{AdbConnection, AdbDevice, AdbError, AdbKey, AdbServer, ConnectOptions};
use futures::{StreamExt as _, pin_mut};

use crate::config::DeviceConfig;

/// From dialling to the device's banner.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Answer to one OPEN. The device answers at once or refuses at once.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// An error and all its causes on one line.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        let text = c.to_string();
        // A transparent error repeats its source.
        if !line.ends_with(&text) {
            let _ = write!(line, ": {text}");
        }
        cause = c.source();
    }
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect()
}

/// Reads the ADB key; blocks on the file.
pub fn load_key(path: Option<&Path>) -> Result<Option<Arc<AdbKey>>, AdbError> {
    path.map(|p| AdbKey::load_or_create(p, "fanlight").map(Arc::new)).transpose()
}

/// Connects to the device.
pub async fn connect(
    config: &DeviceConfig,
    key: Option<Arc<AdbKey>>,
) -> Result<AdbDevice, AdbError> {
    if let Some(address) = &config.adb {
        let options = ConnectOptions {
            key,
            timeout: CONNECT_TIMEOUT,
            open_timeout: OPEN_TIMEOUT,
            ..ConnectOptions::default()
        };
        return AdbConnection::connect(address, options).await.map(AdbDevice::from);
    }
    let server = AdbServer::new(&config.adb_server).with_timeout(CONNECT_TIMEOUT);
    // The configuration check makes sure that one of the two is set.
    let serial = config.serial.as_deref().unwrap_or_default();
    AdbDevice::through_server(server, serial).await
}

/// Ends when the device is gone; one line of how.
pub async fn gone(device: &AdbDevice) -> String {
    match device {
        AdbDevice::Direct(connection) => format!("ADB: {}", connection.closed().await),
        AdbDevice::Server { server, serial, .. } => match server.track_devices().await {
            Ok(lists) => {
                pin_mut!(lists);
                while let Some(list) = lists.next().await {
                    match list {
                        Ok(list) if list.iter().any(|d| d.serial == *serial && d.is_usable()) => {}
                        Ok(_) => return format!("the adb server lost {serial}"),
                        Err(error) => return one_line(&error),
                    }
                }
                "the adb server went away".to_owned()
            }
            Err(error) => one_line(&error),
        },
    }
}

/// Ends the connection where it is ours.
pub fn hang_up(device: &AdbDevice) {
    if let AdbDevice::Direct(connection) = device {
        connection.close();
    }
}
