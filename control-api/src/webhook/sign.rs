//! Events as CloudEvents, signed. Pure but for the secret's file. Invariant: the signature covers
//! the time and every byte of the body, and the secret is never shown.

use std::{fmt, fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use aws_lc_rs::hmac;
use serde_json::{Map, Value, json};

use super::Delivery;
use crate::{service::events::event, store::outbox::Record};

/// Shortest secret.
const MIN_SECRET: usize = 16;

/// Signs deliveries.
pub struct Signer(hmac::Key);

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(***)")
    }
}

impl Signer {
    /// Reads the secret; blanks at its ends are no part of it.
    ///
    /// # Errors
    /// A file that cannot be read, that others can read, or that holds too little.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let meta =
            fs::metadata(path).map_err(|e| anyhow::anyhow!("cannot look at {shown}: {e}"))?;
        let mode = meta.permissions().mode() & 0o777;
        anyhow::ensure!(mode & 0o077 == 0, "{shown} can be read by others (mode {mode:o})");
        let text = fs::read(path).map_err(|e| anyhow::anyhow!("cannot read {shown}: {e}"))?;
        let secret = text.trim_ascii();
        anyhow::ensure!(secret.len() >= MIN_SECRET, "{shown} holds less than {MIN_SECRET} bytes");
        Ok(Self::new(secret))
    }

    /// With this secret.
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// A record, ready to leave at a time (seconds since 1970).
    pub fn sign(&self, record: &Record, timestamp: u64) -> Delivery {
        let body = cloud_event(record).to_string().into_bytes();
        let mut signed = hmac::Context::with_key(&self.0);
        signed.update(timestamp.to_string().as_bytes());
        signed.update(b".");
        signed.update(&body);
        let mut signature = String::from("v1=");
        for byte in signed.sign().as_ref() {
            signature.push_str(&format!("{byte:02x}"));
        }
        Delivery { body, timestamp, signature }
    }
}

/// CloudEvents 1.0, structured mode.
fn cloud_event(record: &Record) -> Value {
    let e = event(record);
    let at = std::time::UNIX_EPOCH + Duration::from_micros(record.at_us);
    let data = e.data.unwrap_or_default();
    let mut fields = Map::new();
    let words = [
        ("stream", data.stream),
        ("viewer", data.viewer),
        ("user", data.user),
        ("node", data.node),
        ("device", data.device),
        ("tenant", data.tenant),
        ("state", data.state),
        ("reason", data.reason),
    ];
    for (name, value) in words {
        if !value.is_empty() {
            fields.insert(name.to_owned(), value.into());
        }
    }
    if e.epoch > 0 {
        // As in the JSON form of protobuf: 64 bits are a string.
        fields.insert("epoch".to_owned(), e.epoch.to_string().into());
    }
    json!({
        "specversion": "1.0",
        "id": e.id,
        "source": e.source,
        "type": e.r#type,
        "subject": e.subject,
        "time": humantime::format_rfc3339_micros(at).to_string(),
        "datacontenttype": "application/json",
        "data": fields,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::outbox::RecordKind;

    #[test]
    fn an_event_is_a_cloud_event_with_a_signature_over_time_and_body() {
        let record = Record {
            position: 1_700_000_000_123_456,
            at_us: 1_700_000_000_123_456,
            stream: Some("a".parse().unwrap()),
            epoch: 7,
            ..Record::new(RecordKind::StreamLive)
        };
        let sent = Signer::new(b"0123456789abcdef").sign(&record, 42);
        let golden = json!({
            "specversion": "1.0",
            "id": "1700000000123456",
            "source": "//fanlight/control",
            "type": "fanlight.stream.live.v1",
            "subject": "streams/a",
            "time": "2023-11-14T22:13:20.123456Z",
            "datacontenttype": "application/json",
            "data": { "stream": "streams/a", "epoch": "7" },
        });
        assert_eq!(serde_json::from_slice::<Value>(&sent.body).unwrap(), golden);
        let mut signed = b"42.".to_vec();
        signed.extend_from_slice(&sent.body);
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef"), &signed);
        let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(sent.signature, format!("v1={hex}"));
        let other = Signer::new(b"0123456789abcdeX").sign(&record, 42);
        assert_ne!(other.signature, sent.signature);
        assert_ne!(Signer::new(b"0123456789abcdef").sign(&record, 43).signature, sent.signature);
    }

    #[test]
    fn a_secret_that_others_can_read_or_that_is_short_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, "0123456789abcdef\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Signer::load(&path).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Signer::load(&path).unwrap();
        fs::write(&path, "short\n").unwrap();
        assert!(Signer::load(&path).is_err());
    }
}
