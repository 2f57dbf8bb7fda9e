//! The gRPC services that the platform's backend calls. They translate: check fields, call the
//! part that knows, turn rows into messages. Not a place for decisions. Invariant: every refusal
//! of a field names the field.

pub(crate) mod batch;
pub(crate) mod check;
pub(crate) mod events;
pub(crate) mod nodes;
mod stream_update;
mod stream_watch;
pub(crate) mod streams;
pub(crate) mod translate;
mod viewer_watch;
pub(crate) mod viewers;
pub(crate) mod watch;

use std::{sync::Arc, time::Duration};

use fanlight_ops::shutdown::Shutdown;
use fanlight_proto::control::v1::{
    event_service_server::EventServiceServer, node_service_server::NodeServiceServer,
    stream_service_server::StreamServiceServer, viewer_service_server::ViewerServiceServer,
};
use fanlight_proto::reason::Reason;
use tokio::{sync::Semaphore, time::Instant};
use tonic::{Request, service::Routes};

use crate::{
    auth::Principal,
    config::WebhookConfig,
    error::ControlError,
    invite::Inviter,
    layers::{DEFAULT_DEADLINE, Deadline, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES},
    link::Links,
    steward::Steward,
    store::Store,
    token::TokenKey,
};

/// What the services work with.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) steward: Arc<Steward>,
    pub(crate) inviter: Arc<Inviter>,
    pub(crate) links: Arc<Links>,
    pub(crate) token: Arc<TokenKey>,
    pub(crate) join_ttl: Duration,
    pub(crate) drain_deadline: Duration,
    pub(crate) shutdown: Shutdown,
    /// Room for watches.
    pub(crate) watches: Arc<Semaphore>,
    /// Webhooks that are configured.
    pub(crate) webhooks: Vec<WebhookConfig>,
}

/// Limits the messages of a service.
macro_rules! sized {
    ($server:expr) => {
        $server
            .max_decoding_message_size(MAX_REQUEST_BYTES)
            .max_encoding_message_size(MAX_RESPONSE_BYTES)
    };
}

/// The services.
pub(crate) fn routes(parts: &Arc<Parts>) -> Routes {
    let parts = || Arc::clone(parts);
    Routes::new(sized!(StreamServiceServer::new(streams::Streams(parts()))))
        .add_service(sized!(ViewerServiceServer::new(viewers::Viewers(parts()))))
        .add_service(sized!(NodeServiceServer::new(nodes::Nodes(parts()))))
        .add_service(sized!(EventServiceServer::new(events::Events(parts()))))
}

/// When the caller stops waiting.
fn deadline<T>(request: &Request<T>) -> Instant {
    let given = request.extensions().get::<Deadline>().map(|d| d.0);
    given.unwrap_or_else(|| Instant::now() + DEFAULT_DEADLINE)
}

/// Who calls. The chain in `layers.rs` says so of every call; a call without it is a fault.
fn caller<T>(request: &Request<T>) -> Result<Principal, ControlError> {
    let who = request.extensions().get::<Principal>().cloned();
    who.ok_or_else(|| ControlError::new(Reason::Internal, "a call came without its caller"))
}
