//! Names and help texts of this package's metrics, and the few helpers that record them.
//! Invariant: every name recorded anywhere in the package is in [`METRICS`].

use fanlight_ops::metrics::MetricDoc;

/// Calls, by method and code.
pub(crate) const CALLS: &str = "fanlight_control_calls_total";
/// Time to answer.
pub(crate) const CALL_SECONDS: &str = "fanlight_control_call_seconds";
/// Calls shed.
pub(crate) const SHED: &str = "fanlight_control_calls_shed_total";
/// Calls refused for their deadline, or ended by it.
pub(crate) const DEADLINES: &str = "fanlight_control_deadlines_total";
/// Calls judged by their token.
pub(crate) const AUTH: &str = "fanlight_control_auth_total";
/// Calls refused for their rate.
pub(crate) const RATE_LIMITED: &str = "fanlight_control_rate_limited_total";
/// Watches begun.
pub(crate) const WATCHES_OPENED: &str = "fanlight_control_watches_opened_total";
/// Watches ended.
pub(crate) const WATCHES_CLOSED: &str = "fanlight_control_watches_closed_total";
/// Deliveries to webhooks.
pub(crate) const WEBHOOKS: &str = "fanlight_control_webhook_deliveries_total";
/// Events given up.
pub(crate) const DEAD_LETTERS: &str = "fanlight_control_webhook_dead_letters_total";
/// Events that fell out of the ring before a webhook took them.
pub(crate) const WEBHOOK_GAPS: &str = "fanlight_control_webhook_gaps_total";
/// Links opened.
pub(crate) const LINKS_OPENED: &str = "fanlight_control_links_opened_total";
/// Links closed.
pub(crate) const LINKS_CLOSED: &str = "fanlight_control_links_closed_total";
/// Connections of nodes refused.
pub(crate) const LINKS_REFUSED: &str = "fanlight_control_links_refused_total";
/// Messages from nodes.
pub(crate) const LINK_MESSAGES: &str = "fanlight_control_link_messages_total";
/// Applies sent.
pub(crate) const APPLIES: &str = "fanlight_control_applies_sent_total";
/// Digest mismatches.
pub(crate) const MISMATCHES: &str = "fanlight_control_digest_mismatches_total";
/// Placements.
pub(crate) const PLACEMENTS: &str = "fanlight_control_placements_total";
/// Tokens minted.
pub(crate) const TOKENS: &str = "fanlight_control_tokens_minted_total";
/// Viewers kicked.
pub(crate) const KICKS: &str = "fanlight_control_kicks_total";
/// WHEP redirects.
pub(crate) const REDIRECTS: &str = "fanlight_control_whep_redirects_total";
/// Origins changed.
pub(crate) const MOVES: &str = "fanlight_control_moves_total";
/// Nodes drained.
pub(crate) const DRAINS: &str = "fanlight_control_drains_total";
/// Tickets given to viewers of lost routers.
pub(crate) const TICKETS: &str = "fanlight_control_tickets_total";
/// Streams by state.
pub(crate) const STREAMS: &str = "fanlight_control_streams";
/// Nodes by state.
pub(crate) const NODES: &str = "fanlight_control_nodes";

/// Metrics of this package.
pub const METRICS: &[MetricDoc] = &[
    MetricDoc::counter(CALLS, "gRPC calls answered; labels `method`, `code`."),
    MetricDoc::histogram(CALL_SECONDS, "Time until a gRPC call was answered; label `method`."),
    MetricDoc::counter(SHED, "gRPC calls refused because too many were in flight."),
    MetricDoc::counter(
        DEADLINES,
        "gRPC calls whose deadline was refused as too long, or passed; label `what`.",
    ),
    MetricDoc::counter(
        AUTH,
        "Calls judged by their token; label `result` is admitted, refused, expired or scope.",
    ),
    MetricDoc::counter(RATE_LIMITED, "Calls refused because their caller calls too often."),
    MetricDoc::counter(WATCHES_OPENED, "Watches of streams, viewers and events begun."),
    MetricDoc::counter(WATCHES_CLOSED, "Watches ended; label `why`."),
    MetricDoc::counter(
        WEBHOOKS,
        "Deliveries to webhooks; label `result` is taken, retried, refused or dead.",
    ),
    MetricDoc::counter(DEAD_LETTERS, "Events that became dead letters of a webhook."),
    MetricDoc::counter(
        WEBHOOK_GAPS,
        "Times a webhook was so far behind that events it had not taken were no longer kept.",
    ),
    MetricDoc::counter(LINKS_OPENED, "Node links welcomed; label `kind`."),
    MetricDoc::counter(LINKS_CLOSED, "Node links ended; label `kind`."),
    MetricDoc::counter(LINKS_REFUSED, "Node connections and links refused; label `why`."),
    MetricDoc::counter(LINK_MESSAGES, "Messages taken from nodes; label `what`."),
    MetricDoc::counter(APPLIES, "Applies sent to nodes; label `form` is full or partial."),
    MetricDoc::counter(MISMATCHES, "Heartbeats whose digest was not the expected one."),
    MetricDoc::counter(PLACEMENTS, "Placements of streams and viewers; labels `what`, `result`."),
    MetricDoc::counter(TOKENS, "Join tokens minted."),
    MetricDoc::counter(KICKS, "Viewers kicked."),
    MetricDoc::counter(
        REDIRECTS,
        "WHEP requests redirected to a router, or refused; label `result`.",
    ),
    MetricDoc::counter(
        MOVES,
        "Streams given to another origin; label `how` is gentle (drain), asked or lost.",
    ),
    MetricDoc::counter(DRAINS, "Drains of nodes begun or undone; label `what`."),
    MetricDoc::counter(
        TICKETS,
        "Redirected viewers whose join token's time was over and who were let in by a ticket.",
    ),
    MetricDoc::gauge(STREAMS, "Streams known; label `state`."),
    MetricDoc::gauge(NODES, "Nodes known; label `state`."),
];

/// Counts one.
pub(crate) fn count(name: &'static str) {
    metrics::counter!(name).increment(1);
}

/// Counts one under a label.
pub(crate) fn count_by(name: &'static str, label: &'static str, value: &'static str) {
    metrics::counter!(name, label => value).increment(1);
}
