//! The services as REST and JSON: `/v1/...`, one table, one transcoder. A request becomes a gRPC
//! call on the same chain of layers (so that callers, rates, deadlines and metrics are the same)
//! and its answer becomes JSON as protobuf defines it, or a problem document. Not a second
//! implementation of anything. Invariant: nothing can be done here that cannot be done by gRPC, and
//! every refusal is `application/problem+json`.

pub mod call;
pub mod problem;
pub mod sessions;
mod table;

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Query, RawPathParams, Request, State},
    response::Response,
    routing::{MethodFilter, on},
};
use fanlight_proto::{FILE_DESCRIPTOR_SET, reason::Reason};
use http::{HeaderValue, StatusCode, header};
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor,
};
use serde_json::{Map, Value};
use tokio::time::timeout;
use tonic::Status;

use crate::{
    error::ControlError,
    layers::{DEFAULT_DEADLINE, MAX_REQUEST_BYTES},
};
use call::Caller;
use problem::problem;
use table::{Binding, TABLE};

/// One route, resolved.
#[derive(Clone, Debug)]
struct Resolved {
    caller: Caller,
    method: MethodDescriptor,
    bindings: &'static [Binding],
}

/// The routes. `inner` is the chain with the gRPC services in it.
///
/// # Errors
/// A table that names what is not in the descriptors: a fault of the build.
pub fn routes(inner: &Router) -> anyhow::Result<Router> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET)?;
    let mut router = Router::new();
    for route in TABLE {
        let (service, method) = route.rpc.split_once('/').unwrap_or_default();
        let service = pool.get_service_by_name(&format!("fanlight.control.v1.{service}"));
        let found = service.and_then(|s| s.methods().find(|m| m.name() == method));
        let method = found.ok_or_else(|| anyhow::anyhow!("{} is no method", route.rpc))?;
        let caller = Caller::new(inner.clone(), format!("/fanlight.control.v1.{}", route.rpc));
        let resolved = Arc::new(Resolved { caller, method, bindings: route.bindings });
        let verb = MethodFilter::try_from(route.verb.clone())?;
        router = router.route(route.path, on(verb, serve).with_state(resolved));
    }
    Ok(router)
}

async fn serve(
    State(route): State<Arc<Resolved>>,
    captures: RawPathParams,
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Response {
    match transcode(&route, &captures, query, request).await {
        Ok(response) => response,
        Err(status) => problem(&status),
    }
}

async fn transcode(
    route: &Resolved,
    captures: &RawPathParams,
    query: Vec<(String, String)>,
    request: Request,
) -> Result<Response, Status> {
    let (head, body) = request.into_parts();
    let input = route.method.input();
    let mut json = read_body(body).await?;
    for (name, value) in query {
        put_query(&mut json, &input, &name, value)?;
    }
    for binding in route.bindings {
        let value = binding.value(captures);
        put_path(&mut json, binding.field, value);
    }
    let message = DynamicMessage::deserialize(input, Value::Object(json))
        .map_err(|e| ControlError::field("body", e.to_string()))?;
    let bytes = message.encode_to_vec();
    let output = route.method.output();
    if route.method.is_server_streaming() {
        let messages = route.caller.stream(&head.headers, bytes).await?;
        return Ok(lines(messages, output));
    }
    let answer = route.caller.unary(&head.headers, bytes).await?;
    let answer = to_json(&output, &answer)?;
    let mut response = Response::new(Body::from(answer));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

/// A JSON object; no body is an empty one.
async fn read_body(body: Body) -> Result<Map<String, Value>, ControlError> {
    let read = timeout(DEFAULT_DEADLINE, to_bytes(body, MAX_REQUEST_BYTES)).await;
    let slow = |_| ControlError::new(Reason::DeadlineExceeded, "the body did not come in time");
    let bytes = read.map_err(slow)?.map_err(|_| {
        let why = format!("the body is larger than {MAX_REQUEST_BYTES} bytes");
        ControlError::new(Reason::TooLarge, why)
    })?;
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&bytes).map_err(|e| ControlError::field("body", e.to_string()))
}

/// A query parameter is a field of the request, by its name in JSON or in the schema.
fn put_query(
    json: &mut Map<String, Value>,
    input: &MessageDescriptor,
    name: &str,
    value: String,
) -> Result<(), ControlError> {
    let field = input.get_field_by_json_name(name).or_else(|| input.get_field_by_name(name));
    let Some(field) = field.filter(scalar) else {
        return Err(ControlError::field(name, "is no parameter of this call"));
    };
    let value = match field.kind() {
        Kind::Bool => match value.as_str() {
            "true" | "" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ => return Err(ControlError::field(name, "must be true or false")),
        },
        // Numbers, enums, masks and durations may be strings in the JSON of protobuf.
        _ => Value::String(value),
    };
    let slot = json.entry(field.json_name().to_owned());
    if field.is_list() {
        if let Value::Array(list) = slot.or_insert_with(|| Value::Array(Vec::new())) {
            list.push(value);
        }
    } else {
        slot.or_insert(value);
    }
    Ok(())
}

/// What can stand in a query: words, numbers, and the messages that are written as one string.
fn scalar(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::Message(message) => message.full_name().starts_with("google.protobuf."),
        _ => !field.is_map(),
    }
}

/// What the path says goes over the body. `a.b` is a field of a field.
fn put_path(json: &mut Map<String, Value>, field: &str, value: String) {
    match field.split_once('.') {
        None => drop(json.insert(field.to_owned(), Value::String(value))),
        Some((outer, inner)) => {
            let slot = json.entry(outer.to_owned()).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = slot {
                map.insert(inner.to_owned(), Value::String(value));
            }
        }
    }
}

fn to_json(output: &MessageDescriptor, bytes: &[u8]) -> Result<Vec<u8>, Status> {
    let fault = |e: String| ControlError::new(Reason::Internal, e);
    let message =
        DynamicMessage::decode(output.clone(), bytes).map_err(|e| fault(e.to_string()))?;
    Ok(serde_json::to_vec(&message).map_err(|e| fault(e.to_string()))?)
}

/// One JSON document a line, for as long as the watch goes on; a refusal is the last line, under
/// the key `error`.
fn lines(messages: call::Messages, output: MessageDescriptor) -> Response {
    let stream = futures::StreamExt::map(messages, move |message| {
        let mut line = match message.and_then(|bytes| to_json(&output, &bytes)) {
            Ok(line) => line,
            Err(status) => {
                let error = BTreeMap::from([("error", problem::document(&status))]);
                serde_json::to_vec(&error).unwrap_or_default()
            }
        };
        line.push(b'\n');
        Ok::<_, std::convert::Infallible>(line)
    });
    let mut response = Response::new(Body::from_stream(stream));
    *response.status_mut() = StatusCode::OK;
    let ndjson = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, ndjson);
    response
}
