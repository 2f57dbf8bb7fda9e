//! Plain counters of one core, read by the shard once a second as absolute values.
//!
//! Not metrics: names, help and labels are in the `router` crate. Invariant: only ever increased,
//! by the one thread that owns the core. Opened/closed pairs stand in for gauges.

use crate::pressure::Transitions;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Everything the core counts. All values only grow.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct Counters { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            /// Name and value of each counter, in the order of declaration.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Streams that became known.
    streams_opened,
    /// Streams that were removed.
    streams_closed,
    /// Streams refused because the table is full.
    streams_refused,
    /// Joins answered.
    viewers_joined,
    /// Joins refused, for any reason.
    joins_refused,
    /// Viewers whose ICE and DTLS completed.
    viewers_connected,
    /// Viewers whose state was dropped.
    viewers_gone,
    /// Viewers that did not connect before the deadline.
    viewers_never_connected,
    /// Viewers dropped because their bytes made the protocol library panic.
    viewer_panics,
    /// Viewers dropped because the protocol library returned an error.
    viewer_errors,
    /// Frames taken in.
    frames_in,
    /// Frames refused: of an old epoch, of an unknown stream, or beyond a bound.
    frames_refused,
    /// Holes seen in the source's frame numbers.
    frame_gaps,
    /// Frames given to viewers' egress, live.
    frames_forwarded,
    /// Frames given to viewers' egress from the cache.
    frames_replayed,
    /// Live frames not given to a viewer because it waits for a keyframe or its backlog is full.
    frames_skipped,
    /// RTP packets given to viewers' egress.
    packets_forwarded,
    /// Payload bytes given to viewers' egress.
    bytes_forwarded,
    /// Groups of pictures replayed from the cache.
    gop_replays,
    /// Times a cache reached its bound and closed until the next keyframe.
    gop_overflows,
    /// PLI and FIR received from viewers.
    keyframe_wanted,
    /// Of these, answered from the cache.
    keyframe_from_cache,
    /// Keyframe requests sent to encoders.
    keyframe_requested,
    /// Frames kept back from a viewer whose path is too narrow for all of them.
    frames_thinned,
    /// Times a viewer's disposable frames began to be kept back.
    pressure_thinned,
    /// Times a viewer was stopped until a keyframe, because its backlog would not drain.
    pressure_stopped,
    /// The same, because it fell silent.
    pressure_silenced,
    /// The same, because what its path takes was used up.
    pressure_overrun,
    /// Times such a viewer went on with a keyframe.
    pressure_resumed,
    /// Times a viewer was given the whole stream again.
    pressure_restored,
    /// Attempts to give a viewer more.
    pressure_probes,
    /// Of these, failed.
    pressure_probes_failed,
    /// Times a viewer was so far behind that it was moved on to the next keyframe.
    viewers_lagged,
    /// Sender reports sent.
    sender_reports,
    /// RTP or RTCP that the protocol library would have sent: dropped, because media is not its
    /// business.
    library_media_dropped,
    /// Viewers whose DTLS keys could not be used for media.
    keys_unusable,
    /// RTCP datagrams read.
    rtcp_in,
    /// RTCP datagrams whose authentication failed.
    rtcp_forged,
    /// RTCP datagrams that were seen before.
    rtcp_replayed,
    /// Authentic RTCP that does not parse.
    rtcp_malformed,
    /// RTCP from viewers that have no keys yet.
    rtcp_early,
    /// RTCP datagrams over a viewer's budget, dropped unread.
    rtcp_denied_rate,
    /// RTP from viewers, who have nothing to send.
    rtp_from_viewers,
    /// Bandwidth messages of the old kind, ignored.
    remb_ignored,
    /// Goodbyes.
    byes,
    /// Reports of arrival times.
    twcc_feedbacks,
    /// Packets that viewers asked for again.
    nacks,
    /// Of these, never sent or sent too long ago.
    nacks_unknown,
    /// Of these, sent again less than a round trip ago.
    nacks_repeated,
    /// Of these, over a budget or bound.
    nacks_denied,
    /// Packets sent again.
    repairs_sent,
    /// Bytes of them.
    bytes_repaired,
    /// STUN from addresses that a viewer has not proved, over its budget, dropped unread.
    stun_denied_rate,
    /// Other datagrams over a viewer's budget, dropped unread.
    protocol_denied_rate,
    /// Addresses that a viewer may not prove because it has proved too many.
    candidates_refused,
    /// Times a viewer's media moved to another path.
    paths_changed,
    /// ICE restarts.
    ice_restarts,
    /// Datagrams taken in.
    datagrams_in,
    /// Datagrams of no known viewer.
    datagrams_unknown,
    /// Datagrams that are no STUN, DTLS, RTP or RTCP.
    datagrams_malformed,
    /// STUN requests whose credentials are wrong.
    stun_rejected,
    /// Datagrams sent.
    datagrams_out,
    /// Bytes sent.
    bytes_out,
    /// Polls of a viewer's protocol state.
    rtc_polls,
    /// Input messages accepted and handed to a device.
    inputs_forwarded,
    /// Moves replaced by a newer move of the same pointer before they were sent.
    inputs_coalesced,
    /// Input messages refused because the viewer is not a controller.
    inputs_denied_role,
    /// Input messages refused by the rate limit.
    inputs_denied_rate,
    /// Input messages that do not parse.
    inputs_malformed,
    /// Input messages refused because the device is offline.
    inputs_denied_offline,
    /// Messages to viewers dropped because their data channel's buffer is full.
    channel_messages_dropped,
}

impl Counters {
    /// Adds what happened to one viewer since the last look.
    pub(crate) fn note_pressure(&mut self, noted: &mut Transitions, after: Transitions) {
        let before = std::mem::replace(noted, after);
        self.pressure_thinned += after.thinned - before.thinned;
        self.pressure_stopped += after.stopped - before.stopped;
        self.pressure_silenced += after.silenced - before.silenced;
        self.pressure_overrun += after.overrun - before.overrun;
        self.pressure_resumed += after.resumed - before.resumed;
        self.pressure_restored += after.restored - before.restored;
        self.pressure_probes += after.probes - before.probes;
        self.pressure_probes_failed += after.probes_failed - before.probes_failed;
    }
}
