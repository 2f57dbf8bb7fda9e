//! UpdateStream's request, read and checked. Not the change itself, which is the store's.
//! Invariant: only what a field mask may name is ever changed.

use std::sync::Arc;

use fanlight_proto::{
    control::v1::{Stream, UpdateStreamRequest},
    id::StreamId,
    reason::Reason,
};

use super::{
    check::Fields,
    streams::{KEEP, method, unread},
    translate,
};
use crate::{
    auth::Principal,
    error::ControlError,
    store::{SpecField, UpdateStream, memory::merged, rows::StreamRow},
};

/// An update and what it takes the new values from.
pub(super) fn read_update(
    who: &Principal,
    body: &UpdateStreamRequest,
) -> Result<(UpdateStream, Stream), ControlError> {
    let mut fields = Fields::new();
    let request = fields.request(&method("UpdateStream", who), &body.request_id, body, KEEP);
    let given = body.stream.clone().unwrap_or_default();
    let id = fields.id("stream.name", StreamId::from_resource_name(&given.name));
    let version = translate::version(&given.etag);
    let known = given.etag.is_empty() || version.is_some();
    fields.must("stream.etag", known, "is not an etag of ours");
    fields.stream(&given);
    let paths = body.update_mask.as_ref().map(|m| m.paths.as_slice()).unwrap_or_default();
    let mut taken = Vec::new();
    for path in paths {
        match spec_field(path) {
            Some(field) => taken.push(field),
            None => fields.wrong("update_mask", format!("{path:?} cannot be changed")),
        }
    }
    if paths.is_empty() {
        taken.extend(UPDATABLE.iter().filter(|(path, _)| !path.contains('.')).map(|(_, f)| *f));
    }
    fields.done()?;
    let id = id.ok_or_else(unread)?;
    let spec = Arc::new(given.clone());
    Ok((UpdateStream { id, version, spec, fields: taken, request }, given))
}

/// What a field mask may name.
const UPDATABLE: [(&str, SpecField); 7] = [
    ("labels", SpecField::Labels),
    ("video", SpecField::Video),
    ("audio", SpecField::Audio),
    ("limits", SpecField::Limits),
    ("limits.max_viewers", SpecField::MaxViewers),
    ("limits.max_controllers", SpecField::MaxControllers),
    ("preferred_region", SpecField::PreferredRegion),
];

fn spec_field(path: &str) -> Option<SpecField> {
    UPDATABLE.iter().find(|(known, _)| *known == path).map(|(_, field)| *field)
}

/// What an update would answer.
pub(super) fn validated_update(
    row: &StreamRow,
    intent: &UpdateStream,
) -> Result<Stream, ControlError> {
    if intent.version.is_some_and(|v| v != row.version) {
        return Err(ControlError::new(Reason::EtagMismatch, "the stream changed meanwhile")
            .about("fanlight.Stream", row.id.resource_name()));
    }
    let mut row = row.clone();
    row.spec = Arc::new(merged(&row.spec, &intent.spec, &intent.fields));
    Ok(translate::stream(&row))
}
