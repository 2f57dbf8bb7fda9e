//! Names, help and labels of every metric of the router, and how a shard's plain counters get to
//! the registry: once a second, as absolute values. Nothing here is called per packet. Invariant:
//! every counter of the core has a name in [`METRICS`].

use std::sync::atomic::Ordering;

use fanlight_ops::metrics::MetricDoc;
use fanlight_router_core::Counters;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label};

use crate::{
    latency::{BUCKETS, Latency, bounds_us},
    shard::{Latencies, ShardStats},
    tcp::TcpCounts,
};

macro_rules! docs {
    (
        core { $($field:ident: $core_name:literal, $core_help:literal;)* }
        others { $($kind:ident $name:literal, $help:literal;)* }
    ) => {
        /// All metrics of this package.
        pub const METRICS: &[MetricDoc] = &[
            $(MetricDoc::counter($core_name, $core_help),)*
            $(MetricDoc::$kind($name, $help),)*
        ];

        /// The core's counters by their field and their metric.
        const CORE: &[(&str, &str)] = &[$((stringify!($field), $core_name),)*];
    };
}

docs! {
    core {
        streams_opened: "fanlight_router_shard_streams_opened_total", "Streams taken up by a shard; labels `node`, `shard` (as all of a shard's).";
        streams_closed: "fanlight_router_shard_streams_closed_total", "Streams dropped by a shard.";
        streams_refused: "fanlight_router_shard_streams_refused_total", "Streams refused because the shard's table is full.";
        viewers_joined: "fanlight_router_viewers_joined_total", "Joins answered.";
        joins_refused: "fanlight_router_joins_refused_total", "Joins refused by a shard, for any reason.";
        viewers_connected: "fanlight_router_viewers_connected_total", "Viewers whose ICE and DTLS completed.";
        viewers_gone: "fanlight_router_viewers_gone_total", "Viewers whose state was dropped.";
        viewers_never_connected: "fanlight_router_viewers_never_connected_total", "Viewers that did not connect before the deadline.";
        viewer_panics: "fanlight_router_viewer_panics_total", "Viewers dropped because their bytes made the protocol library panic.";
        viewer_errors: "fanlight_router_viewer_errors_total", "Viewers dropped because the protocol library returned an error.";
        frames_in: "fanlight_router_frames_in_total", "Frames taken in by a shard.";
        frames_refused: "fanlight_router_frames_refused_total", "Frames of an old epoch, of an unknown stream, or beyond a bound.";
        frame_gaps: "fanlight_router_frame_gaps_total", "Holes seen in the source's frame numbers.";
        frames_forwarded: "fanlight_router_frames_forwarded_total", "Frames given to viewers, live.";
        frames_replayed: "fanlight_router_frames_replayed_total", "Frames given to viewers from the cache.";
        frames_skipped: "fanlight_router_frames_skipped_total", "Live frames not given to a viewer that waits for a keyframe or lags.";
        packets_forwarded: "fanlight_router_packets_forwarded_total", "RTP packets given to viewers.";
        bytes_forwarded: "fanlight_router_payload_bytes_forwarded_total", "RTP payload bytes given to viewers.";
        gop_replays: "fanlight_router_gop_replays_total", "Groups of pictures replayed from the cache.";
        gop_overflows: "fanlight_router_gop_overflows_total", "Times a cache reached its bound and closed until the next keyframe.";
        keyframe_wanted: "fanlight_router_keyframes_wanted_total", "PLI and FIR received from viewers.";
        keyframe_from_cache: "fanlight_router_keyframes_from_cache_total", "Of these, answered from the cache.";
        keyframe_requested: "fanlight_router_keyframes_requested_total", "Keyframe requests that a shard made.";
        datagrams_in: "fanlight_router_datagrams_in_total", "Datagrams received.";
        datagrams_unknown: "fanlight_router_datagrams_unknown_total", "Datagrams of no known viewer.";
        datagrams_malformed: "fanlight_router_datagrams_malformed_total", "Datagrams that are no STUN, DTLS, RTP or RTCP.";
        stun_rejected: "fanlight_router_stun_rejected_total", "STUN requests with wrong credentials.";
        datagrams_out: "fanlight_router_datagrams_out_total", "Datagrams given to the socket.";
        bytes_out: "fanlight_router_bytes_out_total", "Bytes given to the socket.";
        frames_thinned: "fanlight_router_frames_thinned_total", "Frames kept back from a viewer whose path is too narrow for all of them.";
        pressure_thinned: "fanlight_router_pressure_thinned_total", "Times a viewer's disposable frames began to be kept back.";
        pressure_stopped: "fanlight_router_pressure_stopped_total", "Times a viewer was stopped until a keyframe: its backlog would not drain.";
        pressure_silenced: "fanlight_router_pressure_silenced_total", "The same: it fell silent.";
        pressure_overrun: "fanlight_router_pressure_overrun_total", "The same: what its path takes was used up.";
        pressure_resumed: "fanlight_router_pressure_resumed_total", "Times such a viewer went on with a keyframe.";
        pressure_restored: "fanlight_router_pressure_restored_total", "Times a viewer was given the whole stream again.";
        pressure_probes: "fanlight_router_pressure_probes_total", "Attempts to give a viewer more.";
        pressure_probes_failed: "fanlight_router_pressure_probes_failed_total", "Of these, failed.";
        viewers_lagged: "fanlight_router_viewers_lagged_total", "Times a viewer was moved on to the next keyframe because the shard was behind.";
        sender_reports: "fanlight_router_sender_reports_total", "RTCP sender reports sent.";
        library_media_dropped: "fanlight_router_library_media_dropped_total", "RTP and RTCP of the protocol library, dropped.";
        keys_unusable: "fanlight_router_keys_unusable_total", "Viewers whose DTLS keys could not be used.";
        rtcp_in: "fanlight_router_rtcp_in_total", "RTCP datagrams read.";
        rtcp_forged: "fanlight_router_rtcp_forged_total", "RTCP datagrams that are not authentic.";
        rtcp_replayed: "fanlight_router_rtcp_replayed_total", "RTCP datagrams seen before.";
        rtcp_malformed: "fanlight_router_rtcp_malformed_total", "Authentic RTCP that does not parse.";
        rtcp_early: "fanlight_router_rtcp_early_total", "RTCP from viewers without keys.";
        rtcp_denied_rate: "fanlight_router_rtcp_denied_rate_total", "RTCP over a viewer's budget, dropped unread.";
        rtp_from_viewers: "fanlight_router_rtp_from_viewers_total", "RTP from viewers, dropped.";
        remb_ignored: "fanlight_router_remb_ignored_total", "REMB messages, ignored.";
        byes: "fanlight_router_byes_total", "RTCP goodbyes from viewers.";
        twcc_feedbacks: "fanlight_router_twcc_feedbacks_total", "Reports of arrival times.";
        nacks: "fanlight_router_nacks_total", "Packets that viewers asked for again.";
        nacks_unknown: "fanlight_router_nacks_unknown_total", "Of these, never sent or sent too long ago.";
        nacks_repeated: "fanlight_router_nacks_repeated_total", "Of these, sent again less than a round trip ago.";
        nacks_denied: "fanlight_router_nacks_denied_total", "Of these, over a budget.";
        repairs_sent: "fanlight_router_repairs_sent_total", "Packets sent again.";
        bytes_repaired: "fanlight_router_repair_bytes_total", "Bytes of packets sent again.";
        stun_denied_rate: "fanlight_router_stun_denied_rate_total", "STUN from unproved addresses over a viewer's budget, dropped unread.";
        protocol_denied_rate: "fanlight_router_protocol_denied_rate_total", "Other datagrams over a viewer's budget, dropped unread.";
        candidates_refused: "fanlight_router_candidates_refused_total", "Addresses beyond those that a viewer may prove.";
        paths_changed: "fanlight_router_paths_changed_total", "Times a viewer's media moved to another path.";
        ice_restarts: "fanlight_router_ice_restarts_total", "ICE restarts.";
        rtc_polls: "fanlight_router_rtc_polls_total", "Polls of a viewer's protocol state.";
        inputs_forwarded: "fanlight_router_inputs_forwarded_total", "Input messages accepted from viewers.";
        inputs_coalesced: "fanlight_router_inputs_coalesced_total", "Moves replaced by a newer one before they were sent.";
        inputs_denied_role: "fanlight_router_inputs_denied_role_total", "Input messages of viewers that may not control.";
        inputs_denied_rate: "fanlight_router_inputs_denied_rate_total", "Input messages over the rate limit.";
        inputs_malformed: "fanlight_router_inputs_malformed_total", "Input messages that do not parse.";
        inputs_denied_offline: "fanlight_router_inputs_denied_offline_total", "Input messages for a device that is offline.";
        channel_messages_dropped: "fanlight_router_channel_messages_dropped_total", "Messages to viewers dropped because their channel's buffer is full.";
    }
    others {
        counter "fanlight_router_added_latency_within_total", "Frames given to the kernel within `le` microseconds of being complete in the router, per viewer; labels `role`, `le`. Behaves as a histogram's buckets.";
        counter "fanlight_router_added_latency_us_total", "Sum of these times in microseconds; label `role`.";
        counter "fanlight_router_send_full_total", "Times the socket's buffer was full: media waits, a small datagram is dropped.";
        counter "fanlight_router_send_refused_total", "Datagrams the system refused to send.";
        counter "fanlight_router_receive_errors_total", "Errors when receiving datagrams.";
        counter "fanlight_router_tcp_opened_total", "Connections of viewers by TCP that were taken.";
        counter "fanlight_router_tcp_turned_away_total", "Connections of viewers closed at once because there are too many.";
        counter "fanlight_router_tcp_misused_total", "Connections that did not begin with a STUN binding request or broke the framing.";
        counter "fanlight_router_tcp_timed_out_total", "Connections closed because they were not answered in time or fell silent.";
        counter "fanlight_router_tcp_ended_total", "Connections ended by the viewer or the network.";
        counter "fanlight_router_tcp_full_total", "Sends dropped because too much waited for a viewer by TCP.";
        counter "fanlight_router_inbox_frames_dropped_total", "Frames dropped because the shard's inbox was full.";
        counter "fanlight_router_inbox_commands_lost_total", "Commands lost because the shard's inbox was full; must be zero.";
        counter "fanlight_router_shard_events_dropped_total", "Input and keyframe requests dropped because the event queue was full.";
        gauge "fanlight_router_shard_busy_permille", "Share of the last second in which the shard worked.";
        gauge "fanlight_router_shard_viewers", "Viewers with state on the shard.";
        counter "fanlight_router_whep_requests_total", "WHEP requests; labels `node`, `method`, `status`.";
        counter "fanlight_router_joins_denied_total", "WHEP joins that got an error; labels `node`, `reason` (a word of the API).";
        histogram "fanlight_router_join_seconds", "Time from a WHEP POST to its answer; label `node`.";
        counter "fanlight_router_sessions_opened_total", "Sessions made; label `node`.";
        counter "fanlight_router_sessions_closed_total", "Sessions ended; labels `node`, `reason`.";
        counter "fanlight_router_viewers_sent_elsewhere_total", "Viewers told to join another router, because their stream moved there; label `node`.";
        counter "fanlight_router_tickets_taken_total", "Viewers let in after their token's time, because they were watching when the stream moved; label `node`.";
        counter "fanlight_router_streams_wanted_total", "Streams assigned to this router; label `node`.";
        counter "fanlight_router_streams_unwanted_total", "Streams taken away from this router; label `node`.";
        counter "fanlight_router_wants_refused_total", "Assignments refused; labels `node`, `reason`.";
        counter "fanlight_router_publishes_opened_total", "Publishes taken; label `node`.";
        counter "fanlight_router_publishes_closed_total", "Publishes ended; label `node`.";
        counter "fanlight_router_publishes_refused_total", "Publishes refused; labels `node`, `reason`.";
        counter "fanlight_router_hop_connections_opened_total", "Connections of ingest workers that completed their handshake; label `node`.";
        counter "fanlight_router_hop_connections_closed_total", "Connections of ingest workers that ended; labels `node`, `reason`.";
        counter "fanlight_router_hop_handshakes_failed_total", "QUIC handshakes that failed: no certificate, wrong protocol, time out; labels `node`, `reason`.";
        counter "fanlight_router_hop_frames_total", "Frames read whole from the hop; label `node`.";
        counter "fanlight_router_hop_bytes_total", "Bytes of RTP packets in them; label `node`.";
        counter "fanlight_router_hop_frames_dropped_total", "Frames of the hop that did not reach the shards; labels `node`, `reason`.";
        counter "fanlight_router_hop_gaps_total", "Holes in the order of frames that were given up; label `node`.";
        counter "fanlight_router_hop_streams_refused_total", "QUIC streams refused; labels `node`, `reason`.";
        counter "fanlight_router_hop_messages_unknown_total", "Control messages of the hop that are not known or out of place; label `node`.";
        counter "fanlight_router_hop_outbox_dropped_total", "Messages to an ingest worker dropped because its outbox was full; label `node`.";
        counter "fanlight_router_device_inputs_total", "Input messages sent to ingest workers; label `node`.";
        counter "fanlight_router_device_outputs_total", "Messages of devices for viewers; label `node`.";
        counter "fanlight_router_keyframe_requests_total", "Keyframe requests sent to ingest workers, merged; label `node`.";
        counter "fanlight_router_reports_dropped_total", "Reports to the control API dropped because their queue was full; label `node`.";
    }
}

/// One shard's handles into the registry, and its own counters.
#[derive(Debug)]
pub(crate) struct ShardMetrics {
    core: Vec<Counter>,
    own: [Counter; 12],
    controllers: LatencyMetrics,
    observers: LatencyMetrics,
    busy: Gauge,
    viewers: Gauge,
    /// Datagrams dropped at the full socket.
    pub(crate) send_full: u64,
    /// Datagrams refused by the system.
    pub(crate) send_refused: u64,
    /// Failed receives.
    pub(crate) receive_errors: u64,
    /// Events dropped at the full queue.
    pub(crate) events_dropped: u64,
}

impl ShardMetrics {
    pub(crate) fn new(node: &str, shard: usize) -> Self {
        let labels =
            vec![Label::new("node", node.to_owned()), Label::new("shard", shard.to_string())];
        let counter = |name: &'static str| {
            let key = Key::from_parts(KeyName::from_const_str(name), labels.clone());
            metrics::with_recorder(|r| r.register_counter(&key, &METADATA))
        };
        let gauge = |name: &'static str| {
            let key = Key::from_parts(KeyName::from_const_str(name), labels.clone());
            metrics::with_recorder(|r| r.register_gauge(&key, &METADATA))
        };
        Self {
            core: core_in_order().map(counter).collect(),
            own: [
                "fanlight_router_send_full_total",
                "fanlight_router_send_refused_total",
                "fanlight_router_receive_errors_total",
                "fanlight_router_inbox_frames_dropped_total",
                "fanlight_router_inbox_commands_lost_total",
                "fanlight_router_shard_events_dropped_total",
                "fanlight_router_tcp_opened_total",
                "fanlight_router_tcp_turned_away_total",
                "fanlight_router_tcp_misused_total",
                "fanlight_router_tcp_timed_out_total",
                "fanlight_router_tcp_ended_total",
                "fanlight_router_tcp_full_total",
            ]
            .map(counter),
            controllers: LatencyMetrics::new(&labels, "controller"),
            observers: LatencyMetrics::new(&labels, "observer"),
            busy: gauge("fanlight_router_shard_busy_permille"),
            viewers: gauge("fanlight_router_shard_viewers"),
            send_full: 0,
            send_refused: 0,
            receive_errors: 0,
            events_dropped: 0,
        }
    }

    /// Hands the present values to the registry.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats; both values are small")]
    pub(crate) fn publish(
        &self,
        counters: &Counters,
        stats: &ShardStats,
        latency: &Latencies,
        tcp: TcpCounts,
    ) {
        for (handle, (_, value)) in self.core.iter().zip(counters.iter()) {
            handle.absolute(value);
        }
        let own = [
            self.send_full,
            self.send_refused,
            self.receive_errors,
            stats.inbox_frames_dropped.load(Ordering::Relaxed),
            stats.inbox_commands_lost.load(Ordering::Relaxed),
            self.events_dropped,
            tcp.opened,
            tcp.turned_away,
            tcp.misused,
            tcp.timed_out,
            tcp.ended,
            tcp.full,
        ];
        for (handle, value) in self.own.iter().zip(own) {
            handle.absolute(value);
        }
        self.controllers.publish(&latency.controllers);
        self.observers.publish(&latency.observers);
        self.busy.set(stats.busy_permille.load(Ordering::Relaxed) as f64);
        self.viewers.set(stats.viewers.load(Ordering::Relaxed) as f64);
    }
}

/// The handles of one kind of viewer's added latency.
#[derive(Debug)]
struct LatencyMetrics {
    buckets: Vec<Counter>,
    sum: Counter,
}

impl LatencyMetrics {
    fn new(labels: &[Label], role: &'static str) -> Self {
        let counter = |name: &'static str, le: Option<String>| {
            let mut labels = labels.to_vec();
            labels.push(Label::new("role", role));
            labels.extend(le.map(|le| Label::new("le", le)));
            let key = Key::from_parts(KeyName::from_const_str(name), labels);
            metrics::with_recorder(|r| r.register_counter(&key, &METADATA))
        };
        let bounds = bounds_us().map(|bound| bound.to_string());
        let all = bounds.into_iter().chain(["+Inf".to_owned()]);
        Self {
            buckets: all
                .map(|le| counter("fanlight_router_added_latency_within_total", Some(le)))
                .collect(),
            sum: counter("fanlight_router_added_latency_us_total", None),
        }
    }

    fn publish(&self, latency: &Latency) {
        debug_assert_eq!(self.buckets.len(), BUCKETS + 1);
        for (handle, value) in self.buckets.iter().zip(latency.cumulative()) {
            handle.absolute(value);
        }
        self.sum.absolute(latency.sum_us());
    }
}

static METADATA: metrics::Metadata<'static> =
    metrics::Metadata::new("fanlight_router", metrics::Level::INFO, None);

/// Metric names in the order in which the core gives its counters.
fn core_in_order() -> impl Iterator<Item = &'static str> {
    let names: Vec<&'static str> = Counters::default()
        .iter()
        .map(|(field, _)| {
            let known = CORE.iter().find(|(core, _)| *core == field);
            // A counter without a name would shift all others: it gets a visible one, and a test
            // fails.
            known.map_or("fanlight_router_unnamed_total", |(_, name)| *name)
        })
        .collect();
    names.into_iter()
}

/// The router's own counters, with this node's name in every one.
#[derive(Clone, Debug)]
pub(crate) struct NodeMetrics {
    node: metrics::SharedString,
}

impl NodeMetrics {
    pub(crate) fn new(node: &str) -> Self {
        Self { node: metrics::SharedString::from_owned(node.to_owned()) }
    }

    /// Counts one.
    pub(crate) fn count(&self, name: &'static str) {
        self.add(name, 1);
    }

    /// Counts several.
    pub(crate) fn add(&self, name: &'static str, n: u64) {
        if n > 0 {
            metrics::counter!(name, "node" => self.node.clone()).increment(n);
        }
    }

    /// Counts one with a reason from a closed set of words.
    pub(crate) fn count_reason(&self, name: &'static str, reason: &'static str) {
        metrics::counter!(name, "node" => self.node.clone(), "reason" => reason).increment(1);
    }

    /// Counts a WHEP request.
    pub(crate) fn whep(&self, method: &'static str, status: u16) {
        let status = status.to_string();
        metrics::counter!(
            "fanlight_router_whep_requests_total",
            "node" => self.node.clone(), "method" => method, "status" => status
        )
        .increment(1);
    }

    /// The time of joins.
    pub(crate) fn join_seconds(&self) -> Histogram {
        metrics::histogram!("fanlight_router_join_seconds", "node" => self.node.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_of_the_core_has_a_name() {
        for (field, _) in Counters::default().iter() {
            assert!(CORE.iter().any(|(core, _)| *core == field), "{field} has no metric");
        }
        assert_eq!(core_in_order().count(), CORE.len(), "CORE names a counter that is gone");
    }

    #[test]
    fn names_are_unique_and_follow_the_rules() {
        for (i, doc) in METRICS.iter().enumerate() {
            assert!(doc.name.starts_with("fanlight_router_"), "{}", doc.name);
            assert!(doc.help.ends_with('.'), "{}", doc.name);
            assert!(METRICS[..i].iter().all(|o| o.name != doc.name), "{} twice", doc.name);
        }
    }
}
