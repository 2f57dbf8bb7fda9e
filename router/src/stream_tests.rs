//! What a stream tells its shards and its publisher, with inboxes that the tests read themselves.

use crossbeam_channel::Receiver;
use fanlight_proto::node::v1::HopMessage;

use super::*;
use crate::{metrics::NodeMetrics, node::Fact, shard::ShardHandle};

struct Bench {
    stream: Stream,
    inboxes: Vec<Receiver<Command>>,
    facts: mpsc::Receiver<Fact>,
    to_worker: mpsc::Receiver<HopMessage>,
    outbox: mpsc::Sender<HopMessage>,
    token: CancellationToken,
}

fn want(epoch: u64) -> Want {
    Want {
        epoch,
        ingest_node: None,
        push_token_sha256: [7; 32],
        ticket_key: Vec::new(),
        moved: None,
    }
}

fn bench(shards: usize, inbox_max: usize) -> Bench {
    let (handles, inboxes): (Vec<_>, Vec<_>) =
        (0..shards).map(|i| ShardHandle::for_test(i, inbox_max)).unzip();
    let (facts_in, facts) = mpsc::channel(64);
    let shared = Shared {
        shards: handles.into(),
        metrics: NodeMetrics::new("test"),
        facts: facts_in,
        sessions_per_stream_max: 2,
    };
    let name = StreamId::parse("pixel").unwrap();
    let stream = Stream::new(StreamKey(1), name, want(5), shared);
    let (outbox, to_worker) = mpsc::channel(4);
    let token = CancellationToken::new();
    Bench { stream, inboxes, facts, to_worker, outbox, token }
}

impl Bench {
    fn publisher(&self, id: u64) -> Publisher {
        Publisher { id, slot: 1, outbox: self.outbox.clone(), superseded: self.token.clone() }
    }

    fn publish(&self, id: u64) {
        let node = NodeId::parse("w1").unwrap();
        self.stream.publish(5, &[7; 32], &node, self.publisher(id)).unwrap();
    }

    fn frame(&self, id: u64, key: bool) -> bool {
        self.stream.frame(
            id,
            NewFrame {
                arrived: Instant::now(),
                rtp_time: 0,
                capture_unix_us: None,
                key,
                discardable: false,
                payloads: vec![vec![if key { 0x65 } else { 0x41 }; 10].into()],
                params: None,
                after_gap: false,
            },
        )
    }

    /// What shard `i` was told, in short.
    fn told(&self, i: usize) -> Vec<String> {
        let short = |command| match command {
            Command::StreamUp { info, gop, .. } => format!("up {} gop {}", info.epoch, gop.len()),
            Command::StreamDown { reason, .. } => format!("down {reason:?}"),
            Command::StreamRemoved { .. } => "removed".into(),
            Command::Frame { frame, .. } => {
                format!("{} {}", if frame.key { "key" } else { "frame" }, frame.index)
            }
            other => format!("{other:?}"),
        };
        self.inboxes[i].try_iter().map(short).collect()
    }

    fn keyframe_requests(&mut self) -> usize {
        let mut count = 0;
        while let Ok(message) = self.to_worker.try_recv() {
            count += usize::from(matches!(message.body, Some(Body::KeyframeRequest(_))));
        }
        count
    }
}

#[test]
fn frames_go_only_where_somebody_watches_and_a_new_shard_gets_the_group() {
    let bench = bench(2, 64);
    assert_eq!(bench.stream.seat(0, 0), Err(SeatError::Offline));
    bench.publish(1);
    assert_eq!(bench.stream.seat(0, 0), Err(SeatError::Offline), "no picture yet");
    assert!(bench.frame(1, false));
    assert_eq!(bench.stream.seat(0, 0), Err(SeatError::Offline), "no keyframe yet");
    bench.frame(1, true);
    bench.frame(1, false);
    assert!(bench.told(0).is_empty() && bench.told(1).is_empty());

    bench.stream.seat(0, 0).unwrap();
    bench.frame(1, false);
    assert_eq!(bench.told(0), ["up 5 gop 2", "frame 2"]);
    bench.stream.seat(1, 0).unwrap();
    assert_eq!(bench.told(1), ["up 5 gop 3"]);
    assert_eq!(bench.stream.seat(1, 0), Err(SeatError::Full));
    bench.stream.leave(0);
    bench.frame(1, true);
    assert_eq!(bench.told(0), ["removed"]);
    assert_eq!(bench.told(1), ["key 3"]);
}

#[test]
fn a_publisher_that_goes_leaves_viewers_waiting_and_its_return_brings_them_back() {
    let mut bench = bench(1, 64);
    bench.publish(1);
    bench.frame(1, true);
    bench.stream.seat(0, 0).unwrap();
    bench.stream.unpublish(1);
    assert_eq!(bench.told(0), ["up 5 gop 1", "down Offline"]);
    bench.publish(2);
    assert!(!bench.frame(1, true), "the first publish is over");
    bench.stream.unpublish(1);
    assert!(bench.frame(2, true));
    assert_eq!(bench.told(0), ["up 5 gop 0", "key 1"]);
    let mut states = Vec::new();
    while let Ok(Fact::Stream(report)) = bench.facts.try_recv() {
        states.push(report.state());
    }
    assert_eq!(states, [StreamState::Live, StreamState::Assigned, StreamState::Live]);
}

#[test]
fn a_full_inbox_drops_until_the_next_keyframe_and_asks_for_one_once() {
    let mut bench = bench(1, 8);
    bench.publish(1);
    bench.frame(1, true);
    bench.stream.seat(0, 0).unwrap();
    // The up and three frames fill the half that frames may use.
    (0..10).for_each(|_| assert!(bench.frame(1, false)));
    assert_eq!(bench.told(0), ["up 5 gop 1", "frame 1", "frame 2", "frame 3"]);
    assert_eq!(bench.keyframe_requests(), 1);
    bench.frame(1, false);
    assert_eq!(bench.told(0), Vec::<String>::new(), "room again, but nothing that decodes");
    bench.frame(1, true);
    bench.frame(1, false);
    assert_eq!(bench.told(0), ["key 12", "frame 13"]);
}

#[test]
fn keyframe_requests_are_merged() {
    let mut bench = bench(1, 8);
    bench.stream.request_keyframe("nobody publishes");
    bench.publish(1);
    (0..10).for_each(|_| bench.stream.request_keyframe("test"));
    assert_eq!(bench.keyframe_requests(), 1);
}

#[test]
fn a_worker_that_does_not_read_costs_no_memory() {
    let bench = bench(1, 8);
    bench.publish(1);
    (0..100).for_each(|_| bench.stream.to_device(SessionId(1), vec![0; 16]));
    assert_eq!(bench.outbox.capacity(), 0);
}

#[test]
fn a_higher_epoch_starts_the_numbers_again_and_refuses_the_old_publisher() {
    let bench = bench(1, 64);
    bench.publish(1);
    bench.frame(1, true);
    bench.stream.seat(0, 0).unwrap();
    bench.stream.rewant(want(6));
    assert!(bench.token.is_cancelled());
    assert!(!bench.frame(1, true));
    let node = NodeId::parse("w1").unwrap();
    let refusal = bench.stream.publish(5, &[7; 32], &node, bench.publisher(2)).unwrap_err();
    assert_eq!(refusal.reason, Reason::StaleEpoch);
    bench.stream.publish(6, &[7; 32], &node, bench.publisher(3)).unwrap();
    bench.frame(3, true);
    assert_eq!(bench.told(0), ["up 5 gop 1", "down Superseded", "up 6 gop 0", "key 0"]);
    assert_eq!(bench.stream.seat(0, 7), Err(SeatError::StaleEpoch));
}

#[test]
fn an_ended_stream_takes_nothing_and_tells_everybody() {
    let mut bench = bench(1, 64);
    bench.publish(1);
    bench.frame(1, true);
    bench.stream.seat(0, 0).unwrap();
    bench.stream.end(DownReason::Deleted);
    assert_eq!(bench.told(0), ["up 5 gop 1", "down Deleted", "removed"]);
    let told = bench.to_worker.try_recv().unwrap().body;
    assert!(matches!(told, Some(Body::Unpublish(u)) if u.slot == 1));
    assert_eq!(bench.stream.seat(0, 0), Err(SeatError::Gone));
    let node = NodeId::parse("w1").unwrap();
    assert!(bench.stream.publish(5, &[7; 32], &node, bench.publisher(2)).is_err());
    bench.stream.leave(0);
    assert!(bench.told(0).is_empty());
}

#[test]
fn a_gap_empties_the_kept_group_because_it_no_longer_decodes() {
    let bench = bench(1, 64);
    bench.publish(1);
    bench.frame(1, true);
    let gap = NewFrame {
        arrived: Instant::now(),
        rtp_time: 0,
        capture_unix_us: None,
        key: false,
        discardable: false,
        payloads: vec![vec![0x41; 10].into()],
        params: None,
        after_gap: true,
    };
    bench.stream.frame(1, gap);
    bench.frame(1, false);
    bench.stream.seat(0, 0).unwrap();
    assert_eq!(bench.told(0), ["up 5 gop 0"]);
    bench.frame(1, false);
    assert_eq!(bench.told(0), ["frame 4"], "the gap is in the numbers");
}

#[test]
fn the_kept_group_is_bounded() {
    let bench = bench(1, 64);
    bench.publish(1);
    bench.frame(1, true);
    for _ in 0..Limits::default().gop_frames_max {
        bench.frame(1, false);
    }
    bench.stream.seat(0, 0).unwrap();
    assert_eq!(bench.told(0), ["up 5 gop 0"], "closed until the next keyframe");
    bench.stream.leave(0);
    bench.frame(1, true);
    bench.told(0);
    bench.stream.seat(0, 0).unwrap();
    assert_eq!(bench.told(0), ["up 5 gop 1"]);
}

#[test]
fn a_stream_that_moved_says_when_its_last_viewer_has_left_and_keeps_its_picture_until_then() {
    let mut bench = bench(2, 64);
    bench.publish(1);
    bench.frame(1, true);
    for shard in [0, 1] {
        bench.stream.seat(shard, 0).unwrap();
    }
    let states = |bench: &mut Bench| {
        let mut all = Vec::new();
        while let Ok(fact) = bench.facts.try_recv() {
            if let Fact::Stream(report) = fact {
                all.push((report.epoch, report.state()));
            }
        }
        all
    };
    states(&mut bench);
    assert!(bench.stream.holds_a_picture());
    let moved = Moved { url: "http://r2/whep/pixel".into(), ticket_key: vec![1] };
    bench.stream.rewant(Want { moved: Some(moved), ..want(5) });
    assert!(!bench.stream.holds_a_picture(), "another router has it");
    bench.frame(1, false);
    assert_eq!(bench.told(0), ["up 5 gop 1", "frame 1"], "and it is shown here too");
    bench.stream.leave(0);
    assert_eq!(states(&mut bench), [], "one is still here");
    bench.stream.leave(1);
    assert_eq!(states(&mut bench), [(5, StreamState::Ended)]);

    // With nobody here from the start it is said at once; and never of one that did not move.
    bench.stream.rewant(want(5));
    assert_eq!(states(&mut bench), []);
    let moved = Moved { url: "http://r3/whep/pixel".into(), ticket_key: vec![1] };
    bench.stream.rewant(Want { moved: Some(moved), ..want(5) });
    assert_eq!(states(&mut bench), [(5, StreamState::Ended)]);
}
