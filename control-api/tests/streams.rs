//! Streams from the backend's side and the nodes' side at once: create, place, refuse, lose, move,
//! delete, repeat.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{
    FakeNode, Manners, Replica, create, device, fields, reason, retryable, router_hello,
    worker_hello,
};
use fanlight_proto::{
    control::v1::{
        CreateStreamRequest, DeleteStreamRequest, GetStreamRequest, ListStreamsRequest,
        RequestKeyframeRequest, Stream, StreamLimits, VideoSpec,
    },
    node::v1::{Want, action::Action, device_status::State as Device, want::Role},
    types::v1::{NodeState, StreamState},
};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tonic::{Code, Request};

fn get(name: &str) -> GetStreamRequest {
    GetStreamRequest { name: name.to_owned() }
}

#[tokio::test]
async fn creating_a_stream_gives_the_router_and_the_worker_their_halves() {
    let replica = Replica::start().await;
    let mut router = replica.router("r1").await;
    let mut worker = replica.worker("w1", &["pixel"]).await;
    let mut streams = replica.streams().await;
    let mut request = create("pixel");
    request.stream.as_mut().unwrap().video =
        Some(VideoSpec { max_fps: 60, target_bitrate_bps: 4_000_000, ..VideoSpec::default() });
    let stream = streams.create_stream(request).await.unwrap().into_inner();
    assert_eq!(stream.name, "streams/pixel");
    assert_eq!(stream.state(), StreamState::Assigned);
    assert_eq!(stream.ingest_node, "nodes/w1");
    let assignment = stream.assignment.unwrap();
    assert_eq!(assignment.origin.unwrap().node, "nodes/r1");

    let at_router = router.want("pixel", 0).await;
    let at_worker = worker.want("pixel", 0).await;
    assert_eq!(at_router.assignment, at_worker.assignment);
    assert_eq!(at_router.assignment.unwrap().epoch, assignment.epoch);
    let (Some(Role::Origin(origin)), Some(Role::Ingest(ingest))) = (at_router.role, at_worker.role)
    else {
        panic!("wrong roles");
    };
    assert_eq!(origin.ingest_node, "nodes/w1");
    assert_eq!(origin.push_token_sha256, Sha256::digest(&ingest.push_token).to_vec());
    assert_eq!(ingest.device, "devices/pixel");
    assert_eq!(ingest.origin.unwrap().quic, ["127.0.0.1:4433"]);
    assert_eq!((ingest.max_fps, ingest.target_bitrate_bps), (60, 4_000_000));

    router.report_stream("pixel", assignment.epoch, StreamState::Live).await;
    router.until("a heartbeat later", |h| h.acked_heartbeats > 2).await;
    let live = streams.get_stream(get("streams/pixel")).await.unwrap().into_inner();
    assert_eq!(live.state(), StreamState::Live);

    let keyframe = RequestKeyframeRequest { name: "streams/pixel".to_owned() };
    streams.request_keyframe(keyframe).await.unwrap();
    let asked = |a: &fanlight_proto::node::v1::Action| matches!(&a.action, Some(Action::Keyframe(k)) if k.stream == "streams/pixel");
    assert!(router.heard().actions.iter().any(asked));

    let delete = DeleteStreamRequest { name: "streams/pixel".to_owned(), ..Default::default() };
    streams.delete_stream(delete.clone()).await.unwrap();
    router.until("told to stop", |h| h.wants.is_empty()).await;
    worker.until("told to stop", |h| h.wants.is_empty()).await;
    let gone = streams.delete_stream(delete).await.unwrap_err();
    assert_eq!((gone.code(), reason(&gone).as_str()), (Code::NotFound, "STREAM_NOT_FOUND"));
}

#[tokio::test]
async fn what_cannot_be_created_now_says_why_and_leaves_nothing_behind() {
    let replica = Replica::start().await;
    let mut streams = replica.streams().await;
    let unknown = streams.create_stream(create("nope")).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "DEVICE_UNKNOWN"));

    let worker = replica.worker("w1", &["a"]).await;
    let no_router = streams.create_stream(create("a")).await.unwrap_err();
    assert_eq!(
        (no_router.code(), reason(&no_router).as_str(), retryable(&no_router)),
        (Code::ResourceExhausted, "NODE_AT_CAPACITY", true)
    );

    worker.report_device(device("a", Device::Offline)).await;
    let _router = replica.router("r1").await;
    let offline = streams.create_stream(create("a")).await.unwrap_err();
    assert_eq!(
        (offline.code(), reason(&offline).as_str(), retryable(&offline)),
        (Code::FailedPrecondition, "DEVICE_OFFLINE", true)
    );
    let list = streams.list_streams(ListStreamsRequest::default()).await.unwrap().into_inner();
    assert!(list.streams.is_empty());

    worker.report_device(device("a", Device::Online)).await;
    let mut online = streams.create_stream(create("a")).await;
    // The report and the call travel apart; the refusal says to try again, and that is done.
    while online.as_ref().is_err_and(retryable) {
        online = streams.create_stream(create("a")).await;
    }
    online.unwrap();
    let twice = streams.create_stream(create("a")).await.unwrap_err();
    assert_eq!((twice.code(), reason(&twice).as_str()), (Code::AlreadyExists, "STREAM_EXISTS"));
}

#[tokio::test]
async fn allow_pending_answers_starved_and_the_stream_comes_up_by_itself() {
    let replica = Replica::start().await;
    let mut streams = replica.streams().await;
    let request = CreateStreamRequest { allow_pending: true, ..create("a") };
    let stream = streams.create_stream(request).await.unwrap().into_inner();
    assert_eq!((stream.state(), stream.reason.as_str()), (StreamState::Starved, "DEVICE_OFFLINE"));
    let mut router = replica.router("r1").await;
    let mut worker = FakeNode::link(&replica, worker_hello("w1", 1, &["a"])).await;
    router.want("a", 0).await;
    worker.want("a", 0).await;
}

#[tokio::test]
async fn a_refusing_router_is_passed_over_and_three_refusals_are_the_end() {
    let replica = Replica::start().await;
    let _worker = replica.worker("w1", &["a"]).await;
    let refusing = Manners { refuses: Some("OVERLOADED"), ..Manners::default() };
    let mut full = Vec::new();
    for n in 1..=3 {
        let hello = router_hello(&format!("full{n}"), 1);
        full.push(FakeNode::link_with(&replica, hello, refusing.clone()).await);
        replica.serving(&format!("full{n}")).await;
    }
    let mut streams = replica.streams().await;
    let refused = streams.create_stream(create("a")).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str(), retryable(&refused)),
        (Code::ResourceExhausted, "NODE_AT_CAPACITY", true)
    );
    full.truncate(2);
    replica.node_state("full3", NodeState::Suspect).await;
    let mut good = replica.router("good").await;
    let stream = streams.create_stream(create("a")).await.unwrap().into_inner();
    let origin = stream.assignment.unwrap().origin.unwrap().node;
    assert_eq!(origin, "nodes/good");
    good.want("a", 0).await;
}

#[tokio::test]
async fn the_same_request_gets_the_same_answer_and_another_body_is_refused() {
    let replica = Replica::start().await;
    let _router = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a", "b"]).await;
    let mut streams = replica.streams().await;
    let id = "6ba7b810-9dad-11d1-80b4-00c04fd430c8".to_owned();
    let mut request = CreateStreamRequest { request_id: id, ..create("a") };
    for n in 0..20 {
        let labels = &mut request.stream.as_mut().unwrap().labels;
        labels.insert(format!("k{n}"), "v".to_owned());
    }
    let first = streams.create_stream(request.clone()).await.unwrap().into_inner();
    let again = streams.create_stream(request.clone()).await.unwrap().into_inner();
    assert_eq!(first, again);
    let mut other = request.clone();
    other.stream.as_mut().unwrap().tenant = "t".to_owned();
    let reused = streams.create_stream(other).await.unwrap_err();
    assert_eq!(
        (reused.code(), reason(&reused).as_str()),
        (Code::InvalidArgument, "REQUEST_ID_REUSED")
    );
    assert_eq!(fields(&reused), ["request_id".to_owned()].into());

    let delete = DeleteStreamRequest {
        name: "streams/a".to_owned(),
        request_id: "6ba7b810-9dad-11d1-80b4-00c04fd430c9".to_owned(),
        ..Default::default()
    };
    let one = streams.delete_stream(delete.clone()).await.unwrap().into_inner();
    let two = streams.delete_stream(delete).await.unwrap().into_inner();
    assert_eq!(one, two);
    // The creation's answer is kept even when its stream is gone.
    let kept = streams.create_stream(request).await.unwrap().into_inner();
    assert_eq!(first, kept);
}

#[tokio::test]
async fn concurrent_calls_with_one_request_id_make_one_stream() {
    let replica = Replica::start().await;
    let mut router = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a"]).await;
    let request = CreateStreamRequest {
        request_id: "6ba7b810-9dad-11d1-80b4-00c04fd430ca".to_owned(),
        ..create("a")
    };
    let calls = (0..8).map(|_| {
        let request = request.clone();
        let streams = replica.streams();
        async move { streams.await.create_stream(request).await.map(tonic::Response::into_inner) }
    });
    let answers = futures::future::join_all(calls).await;
    let epochs: std::collections::BTreeSet<_> =
        answers.into_iter().map(|a| a.unwrap().assignment.unwrap().epoch).collect();
    assert_eq!(epochs.len(), 1);
    router.want("a", 0).await;
    assert_eq!(router.heard().wants.len(), 1);
}

#[tokio::test]
async fn a_caller_that_hangs_up_leaves_a_whole_stream_for_its_retry() {
    let replica = Replica::start().await;
    let mute = Manners { acks: false, ..Manners::default() };
    let mut router = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a"]).await;
    router.manners.send_replace(mute);
    let request = CreateStreamRequest {
        request_id: "6ba7b810-9dad-11d1-80b4-00c04fd430cb".to_owned(),
        ..create("a")
    };
    let mut streams = replica.streams().await;
    let call = tokio::spawn({
        let (mut streams, request) = (streams.clone(), request.clone());
        async move { streams.create_stream(request).await }
    });
    router.until("asked", |h| !h.applies.is_empty()).await;
    call.abort();
    // The retry waits for the same stream, and the router comes to its senses.
    let retry = tokio::spawn(async move { streams.create_stream(request).await });
    router.manners.send_replace(Manners::default());
    let version = router.heard().applies.last().unwrap().want_version;
    let ack = fanlight_proto::node::v1::Ack { want_version: version, ..Default::default() };
    router.send(fanlight_proto::node::v1::link_request::Body::Ack(ack)).await;
    let stream = retry.await.unwrap().unwrap().into_inner();
    assert_eq!(stream.state(), StreamState::Assigned);
}

#[tokio::test]
async fn a_router_that_never_answers_ends_the_call_at_its_deadline_and_nothing_stays() {
    let replica = Replica::start().await;
    let router = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a"]).await;
    router.manners.send_replace(Manners { acks: false, ..Manners::default() });
    let mut streams = replica.streams().await;
    let mut request = Request::new(create("a"));
    request.set_timeout(Duration::from_millis(600));
    let late = streams.create_stream(request).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    let gone = async {
        while streams.get_stream(get("streams/a")).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(common::SOON, gone).await.unwrap();
}

#[tokio::test]
async fn a_lost_origin_is_replaced_under_a_greater_epoch_and_the_worker_is_told() {
    let replica = Replica::with(|cfg| cfg.lease = Duration::from_secs(1)).await;
    let first = replica.router("r1").await;
    let mut worker = replica.worker("w1", &["a"]).await;
    let mut streams = replica.streams().await;
    let epoch =
        streams.create_stream(create("a")).await.unwrap().into_inner().assignment.unwrap().epoch;
    let mut second = replica.router("r2").await;
    first.manners.send_replace(Manners { beats: false, ..Manners::default() });
    let want = second.want("a", epoch).await;
    let told = worker.want("a", epoch).await;
    let origin = |w: &Want| w.assignment.clone().and_then(|a| a.origin).map(|o| o.node);
    assert_eq!(
        (origin(&told).as_deref(), origin(&want).as_deref()),
        (Some("nodes/r2"), Some("nodes/r2"))
    );
    let stream = streams.get_stream(get("streams/a")).await.unwrap().into_inner();
    assert_eq!(stream.assignment.unwrap().origin.unwrap().node, "nodes/r2");
}

#[tokio::test]
async fn a_stream_whose_worker_calls_it_healthy_stays_until_the_word_changes() {
    let replica = Replica::start().await;
    let first = replica.router("r1").await;
    let mut worker = replica.worker("w1", &["a"]).await;
    let mut streams = replica.streams().await;
    let epoch =
        streams.create_stream(create("a")).await.unwrap().into_inner().assignment.unwrap().epoch;
    worker.want("a", 0).await;
    worker.report_stream("a", epoch, StreamState::Live).await;
    worker.until("its word is heard", |h| h.acked_heartbeats > 3).await;
    let mut second = replica.router("r2").await;
    first.goodbye().await;
    replica.node_state("r1", NodeState::Lost).await;
    // The sweep that lost the router was judged in the same step that answers this call.
    let stays = streams.get_stream(get("streams/a")).await.unwrap().into_inner();
    assert_eq!(stays.assignment.unwrap().epoch, epoch);
    worker.report_stream("a", epoch, StreamState::Starved).await;
    second.want("a", epoch).await;
}

#[tokio::test]
async fn a_restarted_router_is_given_its_streams_again_at_once() {
    let replica = Replica::start().await;
    let first = replica.router("r1").await;
    let mut worker = replica.worker("w1", &["a"]).await;
    let mut streams = replica.streams().await;
    let epoch =
        streams.create_stream(create("a")).await.unwrap().into_inner().assignment.unwrap().epoch;
    let old_token = match worker.want("a", 0).await.role {
        Some(Role::Ingest(i)) => i.push_token,
        other => panic!("{other:?}"),
    };
    first.die();
    let mut again = FakeNode::link(&replica, router_hello("r1", 2)).await;
    let want = again.want("a", epoch).await;
    let told = worker.want("a", epoch).await;
    assert_eq!(want.assignment, told.assignment);
    assert_eq!(told.assignment.unwrap().origin.unwrap().incarnation, 2);
    let Some(Role::Ingest(ingest)) = told.role else { panic!("no ingest role") };
    assert_eq!(ingest.push_token, old_token);
}

#[tokio::test]
async fn a_restarted_worker_is_given_its_streams_again() {
    let replica = Replica::start().await;
    let _router = replica.router("r1").await;
    let worker = replica.worker("w1", &["a"]).await;
    let mut streams = replica.streams().await;
    streams.create_stream(create("a")).await.unwrap();
    worker.die();
    let mut again = FakeNode::link(&replica, worker_hello("w1", 2, &["a"])).await;
    again.want("a", 0).await;
}

#[tokio::test]
async fn a_device_that_changes_workers_takes_its_stream_along() {
    let replica = Replica::start().await;
    let mut router = replica.router("r1").await;
    let worker = replica.worker("w1", &["a"]).await;
    let mut streams = replica.streams().await;
    let epoch =
        streams.create_stream(create("a")).await.unwrap().into_inner().assignment.unwrap().epoch;
    worker.report_device(device("a", Device::Removed)).await;
    let mut next = FakeNode::link(&replica, worker_hello("w2", 1, &["a"])).await;
    next.want("a", epoch).await;
    router.want("a", epoch).await;
}

#[tokio::test]
async fn wrong_fields_are_refused_and_named_together() {
    let replica = Replica::start().await;
    let mut streams = replica.streams().await;
    let bad = CreateStreamRequest {
        stream_id: "a/b".to_owned(),
        request_id: "not a uuid".to_owned(),
        stream: Some(Stream {
            device: "pixel".to_owned(),
            tenant: "x".repeat(129),
            labels: [("k".repeat(64), String::new())].into(),
            video: Some(VideoSpec {
                codec: "av1".to_owned(),
                width: 100,
                max_fps: 1000,
                target_bitrate_bps: 10,
                max_bitrate_bps: 5,
                ..VideoSpec::default()
            }),
            limits: Some(StreamLimits {
                idle_timeout: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
                ..StreamLimits::default()
            }),
            ..Stream::default()
        }),
        ..CreateStreamRequest::default()
    };
    let refused = streams.create_stream(bad).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let want: std::collections::BTreeSet<String> = [
        "stream_id",
        "request_id",
        "stream.device",
        "stream.tenant",
        "stream.labels",
        "stream.video.codec",
        "stream.video.width",
        "stream.video.max_fps",
        "stream.video.target_bitrate_bps",
        "stream.limits.idle_timeout",
    ]
    .map(str::to_owned)
    .into();
    assert_eq!(fields(&refused), want);

    let none = streams.create_stream(CreateStreamRequest::default()).await.unwrap_err();
    assert_eq!(fields(&none), ["stream".to_owned()].into());
    let name = streams.get_stream(get("pixel")).await.unwrap_err();
    assert_eq!((name.code(), fields(&name)), (Code::InvalidArgument, ["name".to_owned()].into()));
    let etag =
        DeleteStreamRequest { name: "streams/a".into(), etag: "x".into(), ..Default::default() };
    assert_eq!(fields(&streams.delete_stream(etag).await.unwrap_err()), ["etag".to_owned()].into());
    let page = ListStreamsRequest { page_size: -1, ..Default::default() };
    assert_eq!(
        fields(&streams.list_streams(page).await.unwrap_err()),
        ["page_size".to_owned()].into()
    );
    let page = ListStreamsRequest { page_token: "AAAA".into(), ..Default::default() };
    assert_eq!(
        fields(&streams.list_streams(page).await.unwrap_err()),
        ["page_token".to_owned()].into()
    );
    let filter = ListStreamsRequest { filter: "state=LIVE".into(), ..Default::default() };
    assert_eq!(
        fields(&streams.list_streams(filter).await.unwrap_err()),
        ["filter".to_owned()].into()
    );
}

#[tokio::test]
async fn validate_only_changes_nothing_and_etags_guard_deletion() {
    let replica = Replica::start().await;
    let _router = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a"]).await;
    let mut streams = replica.streams().await;
    let dry = CreateStreamRequest { validate_only: true, ..create("a") };
    let stream = streams.create_stream(dry).await.unwrap().into_inner();
    assert_eq!((stream.name.as_str(), stream.state()), ("streams/a", StreamState::Pending));
    assert_eq!(streams.get_stream(get("streams/a")).await.unwrap_err().code(), Code::NotFound);

    let stream = streams.create_stream(create("a")).await.unwrap().into_inner();
    let stale =
        DeleteStreamRequest { name: stream.name.clone(), etag: "v1".into(), ..Default::default() };
    let aborted = streams.delete_stream(stale).await.unwrap_err();
    assert_eq!((aborted.code(), reason(&aborted).as_str()), (Code::Aborted, "ETAG_MISMATCH"));
    let missing =
        DeleteStreamRequest { name: "streams/b".into(), allow_missing: true, ..Default::default() };
    assert_eq!(streams.delete_stream(missing).await.unwrap().into_inner().viewers_closed, 0);
}

#[tokio::test]
async fn lists_are_paged_in_order_without_gaps() {
    let replica = Replica::start().await;
    let names: Vec<String> = (0..7).map(|n| format!("d{n}")).collect();
    let mut streams = replica.streams().await;
    for name in &names {
        let pending = CreateStreamRequest { allow_pending: true, ..create(name) };
        streams.create_stream(pending).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListStreamsRequest { page_size: 3, page_token, ..Default::default() };
        let page = streams.list_streams(request).await.unwrap().into_inner();
        assert!(page.streams.len() <= 3);
        seen.extend(page.streams.into_iter().map(|s| s.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let want: Vec<String> = names.iter().map(|n| format!("streams/{n}")).collect();
    assert_eq!(seen, want);
}
