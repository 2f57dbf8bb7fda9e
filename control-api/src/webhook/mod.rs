//! Webhooks: events are POSTed to addresses of the platform, at least once and in order per
//! stream. Which replica does so is decided through the store. Not the events themselves (the
//! store's outbox). Invariant: the stored cursor never passes an event that was neither taken nor
//! made a dead letter, so that a replica that dies loses nothing.
//!
//! Reading order: [`relay`] (who sends what, and how far it is) → [`retry`] (pure: when again) →
//! [`sign`] → [`post`].

pub mod post;
pub mod relay;
pub mod retry;
pub mod sign;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use fanlight_ops::shutdown::Shutdown;
use futures::future::BoxFuture;

use crate::{config::WebhookConfig, service::events::Interest, store::Store};
use post::HttpPost;
use relay::Relay;
use sign::Signer;

/// One delivery as it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// CloudEvents 1.0, structured JSON.
    pub body: Vec<u8>,
    /// `fanlight-timestamp`: seconds since 1970.
    pub timestamp: u64,
    /// `fanlight-signature`: `v1=` and the HMAC-SHA256 of `{timestamp}.{body}` in hexadecimal.
    pub signature: String,
}

/// Something that takes deliveries.
pub trait Post: Send + Sync + 'static {
    /// Sends one; the answer is the HTTP status, or why there was none.
    fn post(&self, delivery: Delivery) -> BoxFuture<'_, Result<u16, String>>;
}

/// Longest wait for an answer.
pub const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Starts the relays of all configured webhooks.
///
/// # Errors
/// Secrets or certificates that cannot be used.
pub fn start(
    webhooks: &[WebhookConfig],
    store: &Arc<dyn Store>,
    replica: &str,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let mut relays = Vec::new();
    for w in webhooks {
        let unusable = || format!("cannot use the webhook {}", w.name);
        let signer = Signer::load(&w.secret_file).with_context(unusable)?;
        let post = HttpPost::new(&w.url, w.ca_file.as_deref()).with_context(unusable)?;
        let interest = Interest::new(w.tenant.clone(), w.types.clone());
        let (name, holder) = (w.name.clone(), replica.to_owned());
        relays.push(Relay::new(name, holder, Arc::clone(store), interest, signer, post));
    }
    for relay in relays {
        let end = shutdown.token();
        shutdown.spawn("webhook", async move { relay.run(end).await });
    }
    Ok(())
}
