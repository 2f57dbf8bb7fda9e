//! What can go wrong while serving a call, and how it is told to the caller: one machine word
//! (`Reason`) with `google.rpc` details. Not the faults of start-up (those are `anyhow` in
//! `api.rs`). Invariant: every refusal carries `ErrorInfo`, and `RetryInfo` exactly when trying
//! the same call again can help.

use std::time::Duration;

use fanlight_proto::{
    id::IdError,
    reason::{DOMAIN, Reason},
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

/// Why a call was refused. To blame is the caller unless `reason` says otherwise.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct ControlError {
    /// Machine word; decides the gRPC code.
    pub reason: Reason,
    /// One sentence for people.
    pub message: String,
    /// The resource it is about, as (type, name).
    pub resource: Option<(&'static str, String)>,
    /// Trying again after this can help.
    pub retry: Option<Duration>,
    /// Fields of the request that are wrong.
    pub fields: Vec<(String, String)>,
}

impl ControlError {
    /// A refusal without details.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), resource: None, retry: None, fields: Vec::new() }
    }

    /// Names the resource.
    #[must_use]
    pub fn about(mut self, kind: &'static str, name: impl Into<String>) -> Self {
        self.resource = Some((kind, name.into()));
        self
    }

    /// Says that the same call may succeed later.
    #[must_use]
    pub fn retry_in(mut self, after: Duration) -> Self {
        self.retry = Some(after);
        self
    }

    /// One wrong field.
    pub fn field(field: &str, why: impl Into<String>) -> Self {
        Self::fields(vec![(field.to_owned(), why.into())])
    }

    /// Several wrong fields, told at once.
    pub fn fields(fields: Vec<(String, String)>) -> Self {
        let message = fields.iter().map(|(f, why)| format!("{f}: {why}")).collect::<Vec<_>>();
        let mut error = Self::new(Reason::InvalidArgument, message.join("; "));
        error.fields = fields;
        error
    }

    /// The stream is not known.
    pub fn no_stream(name: impl Into<String>) -> Self {
        Self::new(Reason::StreamNotFound, "no such stream").about("fanlight.Stream", name)
    }

    /// The viewer is not known.
    pub fn no_viewer(name: impl Into<String>) -> Self {
        Self::new(Reason::ViewerNotFound, "no such viewer").about("fanlight.Viewer", name)
    }

    /// The request id was used with another body.
    pub fn request_reused() -> Self {
        let mut error =
            Self::field("request_id", "was used before with another body; use a fresh UUID");
        error.reason = Reason::RequestIdReused;
        error
    }
}

/// The gRPC code that belongs to a reason.
pub fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::InvalidArgument
        | Reason::RequestIdReused
        | Reason::UnsupportedMediaType
        | Reason::BadSdp
        | Reason::NoCommonCodec
        | Reason::TooLarge => Code::InvalidArgument,
        Reason::StreamNotFound
        | Reason::ViewerNotFound
        | Reason::NodeNotFound
        | Reason::SessionNotFound
        | Reason::DeviceUnknown
        | Reason::WebhookNotFound => Code::NotFound,
        Reason::StreamExists | Reason::ViewerExists => Code::AlreadyExists,
        Reason::EtagMismatch => Code::Aborted,
        Reason::DeviceOffline
        | Reason::StaleEpoch
        | Reason::StaleIncarnation
        | Reason::OriginLost
        | Reason::OriginRestarted
        | Reason::OriginDraining
        | Reason::MoveAsked
        | Reason::PushBroken => Code::FailedPrecondition,
        Reason::NodeAtCapacity
        | Reason::StreamLimit
        | Reason::TableFull
        | Reason::Overloaded
        | Reason::SlowWatcher
        | Reason::RateLimited => Code::ResourceExhausted,
        Reason::PositionExpired => Code::OutOfRange,
        Reason::TokenMissing | Reason::TokenInvalid | Reason::TokenExpired => Code::Unauthenticated,
        Reason::PublishDenied
        | Reason::TokenForeign
        | Reason::ViewerBarred
        | Reason::NodeIdentity
        | Reason::ScopeMissing => Code::PermissionDenied,
        Reason::Draining | Reason::StoreUnavailable => Code::Unavailable,
        Reason::DeadlineExceeded => Code::DeadlineExceeded,
        Reason::Unsupported => Code::Unimplemented,
        _ => Code::Internal,
    }
}

impl From<ControlError> for Status {
    fn from(e: ControlError) -> Self {
        let mut details = ErrorDetails::new();
        details.set_error_info(e.reason.as_str(), DOMAIN, std::collections::HashMap::new());
        if let Some(after) = e.retry {
            details.set_retry_info(Some(after));
        }
        if !e.fields.is_empty() {
            let violations =
                e.fields.iter().map(|(f, why)| FieldViolation::new(f, why)).collect::<Vec<_>>();
            details.set_bad_request(violations);
        }
        if let Some((kind, name)) = &e.resource {
            details.set_resource_info(*kind, name, "", "");
        }
        if e.reason == Reason::Internal {
            tracing::error!(error = %e.message, "internal error answered to a caller");
        }
        Self::with_error_details(code_of(e.reason), e.message, details)
    }
}

/// Turns a malformed identifier into a refusal that names the field.
pub fn bad_id(field: &str) -> impl FnOnce(IdError) -> ControlError + '_ {
    move |e| ControlError::field(field, e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_but_internal_has_its_own_code() {
        for reason in Reason::ALL {
            let internal = code_of(*reason) == Code::Internal;
            assert_eq!(internal, *reason == Reason::Internal, "{reason}");
        }
    }

    #[test]
    fn details_survive_the_status() {
        let status: Status = ControlError::new(Reason::DeviceOffline, "asleep")
            .about("fanlight.Device", "devices/a")
            .retry_in(Duration::from_secs(1))
            .into();
        assert_eq!(status.code(), Code::FailedPrecondition);
        let details = status.get_error_details();
        assert_eq!(details.error_info().map(|i| i.reason.as_str()), Some("DEVICE_OFFLINE"));
        assert_eq!(details.retry_info().and_then(|r| r.retry_delay), Some(Duration::from_secs(1)));
        assert_eq!(details.resource_info().map(|r| r.resource_name.as_str()), Some("devices/a"));
    }

    #[test]
    fn wrong_fields_are_all_named() {
        let status: Status =
            ControlError::fields(vec![("a".into(), "x".into()), ("b".into(), "y".into())]).into();
        let details = status.get_error_details();
        let bad = details.bad_request().expect("bad request details");
        let names: Vec<_> = bad.field_violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
