//! Watches and events: what is told, in which order, and how a reader that stops goes on.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Replica, SOON, create, reason, retryable};
use fanlight_proto::{
    control::v1::{
        CreateViewerRequest, DeleteStreamRequest, Event, KickViewerRequest, ListEventsRequest,
        StreamEventsRequest, WatchKind, WatchStreamsRequest, WatchStreamsResponse,
        WatchViewersRequest, WatchViewersResponse, event_service_client::EventServiceClient,
    },
    node::v1::viewer_report::Kind,
    types::v1::StreamState,
};
use tonic::{Code, Streaming};

async fn next<M>(watch: &mut Streaming<M>) -> M {
    let next = tokio::time::timeout(SOON, watch.message()).await;
    next.expect("a message in time").expect("no refusal").expect("the watch goes on")
}

/// Reads until a message satisfies a condition; answers all that were read.
async fn until<M>(watch: &mut Streaming<M>, mut holds: impl FnMut(&M) -> bool) -> Vec<M> {
    let mut all = Vec::new();
    loop {
        let message = next(watch).await;
        let done = holds(&message);
        all.push(message);
        if done {
            return all;
        }
    }
}

fn told(m: &WatchStreamsResponse) -> (WatchKind, String) {
    (m.kind(), m.stream.as_ref().map(|s| s.name.clone()).unwrap_or_default())
}

fn told_viewer(m: &WatchViewersResponse) -> (WatchKind, String) {
    (m.kind(), m.viewer.as_ref().map(|v| v.name.clone()).unwrap_or_default())
}

fn invite(stream: &str, viewer: &str) -> CreateViewerRequest {
    CreateViewerRequest {
        parent: format!("streams/{stream}"),
        viewer_id: viewer.to_owned(),
        ..CreateViewerRequest::default()
    }
}

fn delete(stream: &str) -> DeleteStreamRequest {
    DeleteStreamRequest { name: format!("streams/{stream}"), ..Default::default() }
}

#[tokio::test]
async fn a_watch_tells_the_state_then_changes_and_resumes_without_a_gap() {
    let replica = Replica::start().await;
    let router = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a", "b"]).await;
    let mut streams = replica.streams().await;
    let a = streams.create_stream(create("a")).await.unwrap().into_inner();
    let request = WatchStreamsRequest::default();
    let mut watch = streams.watch_streams(request).await.unwrap().into_inner();
    let first = next(&mut watch).await;
    assert_eq!(told(&first), (WatchKind::Added, "streams/a".to_owned()));
    assert_eq!(first.resume_token, "", "the state is not whole yet");
    let bookmark = next(&mut watch).await;
    assert_eq!(told(&bookmark), (WatchKind::Bookmark, String::new()));

    router.report_stream("a", a.assignment.unwrap().epoch, StreamState::Live).await;
    let live =
        until(&mut watch, |m| m.stream.as_ref().is_some_and(|s| s.state() == StreamState::Live));
    let last = live.await.pop().unwrap();
    assert_eq!(told(&last), (WatchKind::Modified, "streams/a".to_owned()));
    drop(watch);

    // What happens while nobody watches is told afterwards, and nothing before it.
    streams.create_stream(create("b")).await.unwrap();
    streams.delete_stream(delete("a")).await.unwrap();
    let request = WatchStreamsRequest { resume_token: last.resume_token, ..Default::default() };
    let mut watch = streams.watch_streams(request).await.unwrap().into_inner();
    let gone = (WatchKind::Deleted, "streams/a".to_owned());
    let all = until(&mut watch, |m| told(m) == gone).await;
    let all: Vec<_> = all.iter().map(told).collect();
    assert_eq!(all[0], (WatchKind::Added, "streams/b".to_owned()));
    assert!(all.iter().all(|m| m.1 == "streams/b" || *m == gone), "{all:?}");
}

#[tokio::test]
async fn a_token_that_is_not_kept_is_out_of_range_and_garbage_names_the_field() {
    let replica = Replica::start().await;
    let _worker = replica.worker("w1", &["a"]).await;
    let mut streams = replica.streams().await;
    for (token, code, word) in [
        ("17", Code::OutOfRange, "POSITION_EXPIRED"),
        ("99999999999999999999", Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("-1", Code::InvalidArgument, "INVALID_ARGUMENT"),
        ("+1", Code::InvalidArgument, "INVALID_ARGUMENT"),
    ] {
        let request = WatchStreamsRequest { resume_token: token.to_owned(), ..Default::default() };
        let refused = match streams.watch_streams(request).await {
            Err(refused) => refused,
            Ok(watch) => watch.into_inner().message().await.unwrap_err(),
        };
        assert_eq!((refused.code(), reason(&refused).as_str()), (code, word), "{token}");
    }
}

#[tokio::test]
async fn viewers_are_told_from_invitation_to_end() {
    let replica = Replica::start().await;
    let router = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a"]).await;
    replica.streams().await.create_stream(create("a")).await.unwrap();
    let mut viewers = replica.viewers().await;
    viewers.create_viewer(invite("a", "v0")).await.unwrap();
    let request = WatchViewersRequest { parent: "streams/a".to_owned(), ..Default::default() };
    let mut watch = viewers.watch_viewers(request).await.unwrap().into_inner();
    let all = until(&mut watch, |m| m.kind() == WatchKind::Bookmark).await;
    assert_eq!(told_viewer(&all[0]), (WatchKind::Added, "streams/a/viewers/v0".to_owned()));

    viewers.create_viewer(invite("a", "v1")).await.unwrap();
    let v1 = "streams/a/viewers/v1";
    let is =
        |kind: WatchKind| move |m: &WatchViewersResponse| told_viewer(m) == (kind, v1.to_owned());
    until(&mut watch, is(WatchKind::Added)).await;
    router.report_viewer(v1, Kind::Connected).await;
    until(&mut watch, is(WatchKind::Modified)).await;
    let kick = KickViewerRequest { name: v1.to_owned(), ..Default::default() };
    viewers.kick_viewer(kick).await.unwrap();
    until(&mut watch, is(WatchKind::Deleted)).await;
    replica.streams().await.delete_stream(delete("a")).await.unwrap();
    let v0 = (WatchKind::Deleted, "streams/a/viewers/v0".to_owned());
    until(&mut watch, |m| told_viewer(m) == v0).await;
}

fn types(events: &[Event], subject: &str) -> Vec<String> {
    let of = events.iter().filter(|e| e.subject == subject);
    of.map(|e| e.r#type.trim_start_matches("fanlight.").to_owned()).collect()
}

#[tokio::test]
async fn events_are_listed_in_order_and_streamed_from_where_the_list_ended() {
    let replica = Replica::start().await;
    let router = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a"]).await;
    let mut streams = replica.streams().await;
    let a = streams.create_stream(create("a")).await.unwrap().into_inner();
    router.report_stream("a", a.assignment.unwrap().epoch, StreamState::Live).await;
    let mut client = EventServiceClient::new(replica.channel().await);
    let stream =
        StreamEventsRequest { types: vec!["fanlight.stream.".to_owned()], ..Default::default() };
    let mut watch = client.stream_events(stream).await.unwrap().into_inner();
    let batches =
        until(&mut watch, |m| m.events.iter().any(|e| e.r#type.ends_with("live.v1"))).await;
    let heard: Vec<Event> = batches.into_iter().flat_map(|m| m.events).collect();
    let expected =
        ["stream.created.v1", "stream.assigned.v1", "stream.updated.v1", "stream.live.v1"];
    assert_eq!(types(&heard, "streams/a"), expected);
    assert!(heard.iter().all(|e| e.r#type.starts_with("fanlight.stream.")), "{heard:?}");

    // Page by page, everything once, nodes and devices too.
    let (mut position, mut listed) = (String::new(), Vec::new());
    loop {
        let request = ListEventsRequest { position, page_size: 2, ..Default::default() };
        let page = client.list_events(request).await.unwrap().into_inner();
        position = page.position;
        if page.events.is_empty() {
            break;
        }
        listed.extend(page.events);
    }
    assert_eq!(types(&listed, "streams/a"), expected);
    assert_eq!(types(&listed, "devices/a"), ["device.online.v1"]);
    assert_eq!(types(&listed, "nodes/r1"), ["node.starting.v1", "node.serving.v1"]);
    let ids: Vec<u64> = listed.iter().map(|e| e.id.parse().unwrap()).collect();
    assert!(ids.windows(2).all(|w| w[0] < w[1]), "{ids:?}");

    let stream = StreamEventsRequest { position, ..Default::default() };
    let mut watch = client.stream_events(stream).await.unwrap().into_inner();
    streams.delete_stream(delete("a")).await.unwrap();
    let batch = next(&mut watch).await;
    assert_eq!(types(&batch.events, "streams/a"), ["stream.deleted.v1"]);
}

#[tokio::test]
async fn a_stopping_replica_tells_its_watchers_where_to_go_on() {
    let replica = Replica::start().await;
    let mut streams = replica.streams().await;
    let request = WatchStreamsRequest::default();
    let mut watch = streams.watch_streams(request).await.unwrap().into_inner();
    assert_eq!(next(&mut watch).await.kind(), WatchKind::Bookmark);
    replica.shutdown.trigger();
    let ended = tokio::time::timeout(SOON, watch.message()).await.unwrap().unwrap_err();
    assert_eq!((ended.code(), reason(&ended).as_str()), (Code::Unavailable, "DRAINING"));
    assert!(retryable(&ended));
}
