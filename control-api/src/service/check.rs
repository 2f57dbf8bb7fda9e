//! Checks of request fields. Pure. Invariant: all wrong fields of a request are told at once,
//! each by its path, and a value that passes is within the stated bounds.

use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use fanlight_proto::{
    control::v1::{Stream, VideoSpec},
    id::IdError,
};
use prost::Message;
use uuid::Uuid;

use crate::{error::ControlError, store::RequestKey};

/// Labels of a stream; enough for a platform's own keys, and a bound on the row.
const MAX_LABELS: usize = 64;
const MAX_LABEL_KEY_BYTES: usize = 63;
const MAX_LABEL_VALUE_BYTES: usize = 255;
/// Tenants, regions, users: words of the platform.
const MAX_WORD_BYTES: usize = 128;
/// Free texts, such as the reason of a kick.
const MAX_TEXT_BYTES: usize = 512;
/// Largest picture side: H.264 level 6.2.
const MAX_SIDE: u32 = 8192;
const MAX_FPS: u32 = 240;
const MAX_BITRATE_BPS: u64 = 200_000_000;
/// Longest ban and longest session: a year.
pub(crate) const MAX_LONG: Duration = Duration::from_secs(366 * 86_400);

/// Collects wrong fields.
#[derive(Debug, Default)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Notes that a field is wrong.
    pub(crate) fn wrong(&mut self, field: &str, why: impl Into<String>) {
        self.0.push((field.to_owned(), why.into()));
    }

    /// Notes a field that does not hold.
    pub(crate) fn must(&mut self, field: &str, holds: bool, why: &str) {
        if !holds {
            self.wrong(field, why);
        }
    }

    /// Reads an identifier.
    pub(crate) fn id<T>(&mut self, field: &str, parsed: Result<T, IdError>) -> Option<T> {
        parsed.map_err(|e| self.wrong(field, e.to_string())).ok()
    }

    /// A short word of the platform; may be empty.
    pub(crate) fn word(&mut self, field: &str, value: &str) {
        self.must(field, value.len() <= MAX_WORD_BYTES, "has more than 128 bytes");
        let printable = !value.chars().any(char::is_control);
        self.must(field, printable, "has control characters");
    }

    /// A text for people; may be empty.
    pub(crate) fn text(&mut self, field: &str, value: &str) {
        self.must(field, value.len() <= MAX_TEXT_BYTES, "has more than 512 bytes");
    }

    /// A duration that may be absent.
    pub(crate) fn duration(
        &mut self,
        field: &str,
        value: Option<prost_types::Duration>,
        most: Duration,
    ) -> Option<Duration> {
        let Ok(d) = Duration::try_from(value?) else {
            self.wrong(field, "must not be negative");
            return None;
        };
        self.must(field, d <= most, &format!("is longer than {}", humantime(most)));
        Some(d)
    }

    /// A `request_id`, with the fingerprint of the call.
    pub(crate) fn request(
        &mut self,
        method: &str,
        id: &str,
        body: &impl Message,
        keep: Duration,
    ) -> Option<RequestKey> {
        if id.is_empty() {
            return None;
        }
        let Ok(id) = Uuid::try_parse(id) else {
            self.wrong("request_id", "must be a UUID");
            return None;
        };
        let mut hash = Context::new(&SHA256);
        hash.update(method.as_bytes());
        hash.update(&[0]);
        // Maps are ordered in our messages, so equal bodies encode to equal bytes.
        hash.update(&body.encode_to_vec());
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(hash.finish().as_ref());
        Some(RequestKey { id, fingerprint, keep })
    }

    /// A filter; none is understood yet.
    pub(crate) fn filter(&mut self, value: &str) {
        self.must("filter", value.is_empty(), "filters are not supported");
    }

    /// The refusal, if any field was wrong.
    pub(crate) fn done(self) -> Result<(), ControlError> {
        if self.0.is_empty() { Ok(()) } else { Err(ControlError::fields(self.0)) }
    }

    /// What a caller may set of a stream.
    pub(crate) fn stream(&mut self, s: &Stream) {
        self.word("stream.tenant", &s.tenant);
        self.word("stream.preferred_region", &s.preferred_region);
        self.must("stream.labels", s.labels.len() <= MAX_LABELS, "more than 64 labels");
        for (key, value) in &s.labels {
            let fits = (1..=MAX_LABEL_KEY_BYTES).contains(&key.len())
                && value.len() <= MAX_LABEL_VALUE_BYTES;
            if !fits {
                let why = "keys have 1 to 63 bytes, values at most 255";
                self.wrong("stream.labels", why);
                break;
            }
        }
        if let Some(video) = &s.video {
            self.video(video);
        }
        let audio = s.audio.as_ref().is_some_and(|a| a.enabled);
        self.must("stream.audio.enabled", !audio, "audio is not supported");
        let limits = s.limits.unwrap_or_default();
        let idle = self.duration("stream.limits.idle_timeout", limits.idle_timeout, MAX_LONG);
        let never = idle.unwrap_or_default().is_zero();
        self.must("stream.limits.idle_timeout", never, "ending idle streams is not supported");
    }

    fn video(&mut self, v: &VideoSpec) {
        let codec = matches!(v.codec.to_ascii_lowercase().as_str(), "" | "h264");
        self.must("stream.video.codec", codec, "only h264 is supported");
        let pair = (v.width == 0) == (v.height == 0);
        self.must("stream.video.width", pair, "width and height are given together");
        self.must("stream.video.width", v.width <= MAX_SIDE, "is above 8192");
        self.must("stream.video.height", v.height <= MAX_SIDE, "is above 8192");
        self.must("stream.video.max_fps", v.max_fps <= MAX_FPS, "is above 240");
        let most = "is above 200 Mbit/s";
        self.must("stream.video.max_bitrate_bps", v.max_bitrate_bps <= MAX_BITRATE_BPS, most);
        self.must("stream.video.target_bitrate_bps", v.target_bitrate_bps <= MAX_BITRATE_BPS, most);
        let ordered = v.max_bitrate_bps == 0 || v.target_bitrate_bps <= v.max_bitrate_bps;
        self.must("stream.video.target_bitrate_bps", ordered, "is above max_bitrate_bps");
    }
}

fn humantime(d: Duration) -> String {
    match d.as_secs() {
        s if s % 86_400 == 0 => format!("{} d", s / 86_400),
        s if s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}
