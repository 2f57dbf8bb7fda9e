//! Which address stands for which method. Not how. Invariant: a capture of a path only ever becomes
//! a resource name, so that it cannot change what else a call says.

use axum::extract::RawPathParams;
use http::Method;

/// A field that the path says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Binding {
    /// The field, by its name in JSON; `a.b` is a field of a field.
    pub(super) field: &'static str,
    /// Its value, with captures in braces.
    form: &'static str,
}

impl Binding {
    /// The value for these captures.
    pub(super) fn value(&self, captures: &RawPathParams) -> String {
        let mut value = self.form.to_owned();
        for (name, found) in captures {
            value = value.replace(&format!("{{{name}}}"), found);
        }
        value
    }
}

/// One address.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) verb: Method,
    pub(super) path: &'static str,
    pub(super) rpc: &'static str,
    pub(super) bindings: &'static [Binding],
}

const fn bind(field: &'static str, form: &'static str) -> Binding {
    Binding { field, form }
}

const fn at(
    verb: Method,
    path: &'static str,
    rpc: &'static str,
    bindings: &'static [Binding],
) -> Route {
    Route { verb, path, rpc, bindings }
}

const STREAM: &[Binding] = &[bind("name", "streams/{stream}")];
const OF_STREAM: &[Binding] = &[bind("stream", "streams/{stream}")];
const UPDATED: &[Binding] = &[bind("stream.name", "streams/{stream}")];
const PARENT: &[Binding] = &[bind("parent", "streams/{stream}")];
const VIEWER: &[Binding] = &[bind("name", "streams/{stream}/viewers/{viewer}")];
const NODE: &[Binding] = &[bind("name", "nodes/{node}")];
const WEBHOOK: &[Binding] = &[bind("webhook", "{webhook}")];

/// All addresses. A body is the request message as JSON; query parameters are its simple fields.
pub(super) const TABLE: &[Route] = &[
    at(Method::GET, "/v1/streams", "StreamService/ListStreams", &[]),
    at(Method::POST, "/v1/streams", "StreamService/CreateStream", &[]),
    at(Method::POST, "/v1/streams:batchCreate", "StreamService/BatchCreateStreams", &[]),
    at(Method::POST, "/v1/streams:batchDelete", "StreamService/BatchDeleteStreams", &[]),
    at(Method::GET, "/v1/streams:watch", "StreamService/WatchStreams", &[]),
    at(Method::GET, "/v1/streams/{stream}", "StreamService/GetStream", STREAM),
    at(Method::PATCH, "/v1/streams/{stream}", "StreamService/UpdateStream", UPDATED),
    at(Method::DELETE, "/v1/streams/{stream}", "StreamService/DeleteStream", STREAM),
    at(Method::POST, "/v1/streams/{stream}/keyframe", "StreamService/RequestKeyframe", STREAM),
    at(Method::GET, "/v1/streams/{stream}/placement", "NodeService/ExplainPlacement", OF_STREAM),
    at(Method::GET, "/v1/streams/{stream}/viewers", "ViewerService/ListViewers", PARENT),
    at(Method::POST, "/v1/streams/{stream}/viewers", "ViewerService/CreateViewer", PARENT),
    at(
        Method::POST,
        "/v1/streams/{stream}/viewers:batchCreate",
        "ViewerService/BatchCreateViewers",
        PARENT,
    ),
    at(Method::GET, "/v1/streams/{stream}/viewers:watch", "ViewerService/WatchViewers", PARENT),
    at(Method::GET, "/v1/streams/{stream}/viewers/{viewer}", "ViewerService/GetViewer", VIEWER),
    at(
        Method::POST,
        "/v1/streams/{stream}/viewers/{viewer}/kick",
        "ViewerService/KickViewer",
        VIEWER,
    ),
    at(Method::GET, "/v1/nodes", "NodeService/ListNodes", &[]),
    at(Method::GET, "/v1/nodes/{node}", "NodeService/GetNode", NODE),
    at(Method::GET, "/v1/events", "EventService/ListEvents", &[]),
    at(Method::GET, "/v1/events:stream", "EventService/StreamEvents", &[]),
    at(Method::GET, "/v1/webhooks/{webhook}/deadLetters", "EventService/ListDeadLetters", WEBHOOK),
    at(
        Method::POST,
        "/v1/webhooks/{webhook}/deadLetters:replay",
        "EventService/ReplayDeadLetters",
        WEBHOOK,
    ),
];
