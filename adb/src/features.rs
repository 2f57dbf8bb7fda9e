//! Banners and feature lists: what CNXN says about its sender.
//!
//! Not here: the exchange itself (`handshake`). Invariant: a banner is written without a
//! trailing NUL, because the other end would take it for part of the last feature's name.

use std::collections::BTreeSet;

use crate::error::ProtocolError;

/// `shell,v2` with separate stdout and stderr and an exit code.
pub const SHELL_V2: &str = "shell_v2";
/// Windows and counted acknowledgements instead of one packet in flight.
pub const DELAYED_ACK: &str = "delayed_ack";
/// `STA2` and `LST2` in the sync service.
pub const STAT_V2: &str = "stat_v2";
/// `LIS2` in the sync service.
pub const LS_V2: &str = "ls_v2";
/// `cmd` and `exec:cmd` exist.
pub const CMD: &str = "cmd";
/// Pushing into a missing directory creates it.
pub const FIXED_PUSH_MKDIR: &str = "fixed_push_mkdir";

/// More features than any adb has; a banner with more is cut here.
const FEATURES_MAX: usize = 128;
/// Longer than any feature's name.
const FEATURE_LEN_MAX: usize = 64;

/// A set of feature names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeatureSet(BTreeSet<String>);

impl FeatureSet {
    /// No features.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What a host announces unless told otherwise; `delayed_ack` is added by its own option.
    #[must_use]
    pub fn host_default() -> Self {
        Self::from_names([SHELL_V2, CMD, STAT_V2, LS_V2, FIXED_PUSH_MKDIR])
    }

    /// What a device announces unless told otherwise; `delayed_ack` is added by its own option.
    #[must_use]
    pub fn device_default() -> Self {
        Self::from_names([SHELL_V2, CMD, STAT_V2, LS_V2, FIXED_PUSH_MKDIR])
    }

    /// The set of these names.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let usable = |name: &&str| {
            !name.is_empty()
                && name.len() <= FEATURE_LEN_MAX
                && !name.contains([',', ';', '\0', '\n'])
        };
        Self(names.into_iter().filter(usable).take(FEATURES_MAX).map(str::to_owned).collect())
    }

    /// Reads `a,b,c`.
    #[must_use]
    pub fn parse(list: &str) -> Self {
        Self::from_names(list.split(',').map(str::trim))
    }

    /// Whether the set has this feature.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// Adds or removes one feature.
    #[must_use]
    pub fn with(mut self, name: &str, present: bool) -> Self {
        if present {
            self.0.insert(name.to_owned());
        } else {
            self.0.remove(name);
        }
        self
    }

    /// The features both sides have.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).cloned().collect())
    }

    /// The names, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// `a,b,c`.
    #[must_use]
    pub fn to_list(&self) -> String {
        self.0.iter().map(String::as_str).collect::<Vec<_>>().join(",")
    }
}

/// What a device says about itself in CNXN.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceBanner {
    /// `ro.product.name`.
    pub product: String,
    /// `ro.product.model`.
    pub model: String,
    /// `ro.product.device`.
    pub device: String,
    /// What it can do.
    pub features: FeatureSet,
}

impl DeviceBanner {
    /// The banner's bytes, without a trailing NUL.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let clean = |value: &str| value.replace([';', '=', '\0', '\n'], "_");
        format!(
            "device::ro.product.name={};ro.product.model={};ro.product.device={};features={}",
            clean(&self.product),
            clean(&self.model),
            clean(&self.device),
            self.features.to_list()
        )
        .into_bytes()
    }

    /// Reads the banner of any device state (`device`, `recovery`, `sideload`, ...).
    pub fn parse(bytes: &[u8]) -> Result<Self, ProtocolError> {
        let banner = Banner::parse(bytes)?;
        if banner.kind == "host" {
            return Err(ProtocolError::BadBanner("a host answers where a device should be"));
        }
        Ok(Self {
            product: banner.property("ro.product.name").to_owned(),
            model: banner.property("ro.product.model").to_owned(),
            device: banner.property("ro.product.device").to_owned(),
            features: FeatureSet::parse(banner.property("features")),
        })
    }
}

/// The banner a host sends.
#[must_use]
pub fn encode_host_banner(features: &FeatureSet) -> Vec<u8> {
    format!("host::features={}", features.to_list()).into_bytes()
}

/// Reads a host's banner; one without features is an old host.
pub fn parse_host_banner(bytes: &[u8]) -> Result<FeatureSet, ProtocolError> {
    let banner = Banner::parse(bytes)?;
    if banner.kind != "host" {
        return Err(ProtocolError::BadBanner("a device calls where a host should be"));
    }
    Ok(FeatureSet::parse(banner.property("features")))
}

/// `kind:serial:name=value;name=value`, borrowed.
struct Banner<'a> {
    kind: &'a str,
    properties: &'a str,
}

impl<'a> Banner<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, ProtocolError> {
        let text = std::str::from_utf8(bytes)
            .map_err(|_| ProtocolError::BadBanner("not UTF-8"))?
            .trim_end_matches('\0');
        let mut parts = text.splitn(3, ':');
        let kind = parts.next().unwrap_or_default();
        if kind.is_empty() || kind.len() > FEATURE_LEN_MAX {
            return Err(ProtocolError::BadBanner("no state word in front"));
        }
        if parts.next().is_none() {
            return Err(ProtocolError::BadBanner("no serial field"));
        }
        Ok(Self { kind, properties: parts.next().unwrap_or_default() })
    }

    fn property(&self, name: &str) -> &'a str {
        self.properties
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .find_map(|(key, value)| (key == name).then_some(value))
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banner_has_no_trailing_nul_and_survives_a_round_trip() {
        let banner = DeviceBanner {
            product: "fanlight".into(),
            model: "Fan Light 1".into(),
            device: "sim".into(),
            features: FeatureSet::parse("cmd,shell_v2"),
        };
        let bytes = banner.encode();
        assert!(bytes.ends_with(b"features=cmd,shell_v2"));
        assert_eq!(DeviceBanner::parse(&bytes).unwrap(), banner);
    }

    #[test]
    fn a_trailing_nul_from_others_is_tolerated() {
        let banner = DeviceBanner::parse(b"device::features=cmd,shell_v2\0").unwrap();
        assert!(banner.features.has(SHELL_V2));
    }

    #[test]
    fn real_adbd_banner_is_read() {
        let banner = DeviceBanner::parse(
            b"device::ro.product.name=redroid_x86_64;ro.product.model=redroid13_x86_64;\
              ro.product.device=redroid_x86_64;features=sendrecv_v2,delayed_ack,shell_v2,cmd",
        )
        .unwrap();
        assert_eq!(banner.model, "redroid13_x86_64");
        assert!(banner.features.has(DELAYED_ACK));
    }

    #[test]
    fn property_values_cannot_inject_properties() {
        let banner =
            DeviceBanner { model: "x;features=delayed_ack".into(), ..DeviceBanner::default() };
        let read = DeviceBanner::parse(&banner.encode()).unwrap();
        assert!(!read.features.has(DELAYED_ACK));
    }

    #[test]
    fn wrong_end_and_noise_are_refused() {
        for bad in [&b""[..], b"::", b"device", b"\xff\xfe::", b"host::features=cmd"] {
            assert!(DeviceBanner::parse(bad).is_err(), "{bad:?}");
        }
        assert!(parse_host_banner(b"device::").is_err());
        assert!(parse_host_banner(b"host::").is_ok());
    }

    #[test]
    fn a_flood_of_features_is_cut() {
        let list = (0..10_000).map(|i| format!("f{i}")).collect::<Vec<_>>().join(",");
        assert_eq!(FeatureSet::parse(&list).iter().count(), FEATURES_MAX);
    }
}
