//! Backends: who they are, what they see, how often they may call; updates, batches, explanations.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;

use common::{Replica, create, fields, reason, retryable};
use fanlight_control::{
    auth::Scope,
    backend_token::{Args, mint},
};
use fanlight_proto::{
    control::v1::{
        BatchCreateStreamsRequest, BatchCreateViewersRequest, BatchDeleteStreamsRequest,
        CreateStreamRequest, CreateViewerRequest, DeleteStreamRequest, ExplainPlacementRequest,
        GetStreamRequest, GetViewerRequest, ListEventsRequest, ListNodesRequest,
        ListStreamsRequest, ListViewersRequest, PlacementKind, Stream, StreamLimits,
        UpdateStreamRequest, VideoSpec, create_stream_result, create_viewer_result,
        delete_stream_result, event_service_client::EventServiceClient,
    },
    types::v1::StreamState,
};
use tonic::{Code, Request};
use uuid::Uuid;

/// A replica that wants tokens, and a way to mint them.
struct Guarded {
    replica: Replica,
    keys: tempfile::TempDir,
}

impl Guarded {
    async fn start() -> Self {
        Self::with(|_| ()).await
    }

    async fn with(change: impl FnOnce(&mut fanlight_control::ControlConfig)) -> Self {
        let keys = tempfile::tempdir().unwrap();
        mint(&args(&keys, "*", &[])).unwrap();
        let file = keys.path().join("keys.json");
        let replica = Replica::with(|cfg| {
            cfg.backend_keys_file = Some(file);
            change(cfg);
        })
        .await;
        Self { replica, keys }
    }

    fn token(&self, tenant: &str, scopes: &[Scope]) -> String {
        mint(&args(&self.keys, tenant, scopes)).unwrap()
    }

    fn ask<M>(&self, body: M, tenant: &str, scopes: &[Scope]) -> Request<M> {
        with_token(body, &self.token(tenant, scopes))
    }
}

fn args(keys: &tempfile::TempDir, tenant: &str, scopes: &[Scope]) -> Args {
    Args {
        key_file: keys.path().join("key.pem"),
        jwks_file: Some(keys.path().join("keys.json")),
        subject: format!("backend of {tenant}"),
        issuer: "fanlight-backend".to_owned(),
        tenant: tenant.to_owned(),
        scopes: scopes.to_vec(),
        ttl_s: 60,
    }
}

fn with_token<M>(body: M, token: &str) -> Request<M> {
    let mut request = Request::new(body);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn get(name: &str) -> GetStreamRequest {
    GetStreamRequest { name: name.to_owned() }
}

fn pending(device: &str) -> CreateStreamRequest {
    CreateStreamRequest { allow_pending: true, ..create(device) }
}

#[tokio::test]
async fn without_a_token_or_its_scope_nothing_is_done() {
    let guarded = Guarded::start().await;
    let mut streams = guarded.replica.streams().await;
    let refused = streams.list_streams(ListStreamsRequest::default()).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::Unauthenticated, "TOKEN_MISSING")
    );
    let request = guarded.ask(pending("a"), "*", &[Scope::StreamsRead]);
    let refused = streams.create_stream(request).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::PermissionDenied, "SCOPE_MISSING")
    );
    let request = guarded.ask(ListStreamsRequest::default(), "*", &[Scope::StreamsRead]);
    assert!(streams.list_streams(request).await.unwrap().into_inner().streams.is_empty());
    let mut nodes = guarded.replica.nodes().await;
    let request = guarded.ask(ListNodesRequest::default(), "acme", &[Scope::NodesAdmin]);
    assert_eq!(nodes.list_nodes(request).await.unwrap_err().code(), Code::PermissionDenied);
    // Health is for load balancers.
    let mut health =
        tonic_health::pb::health_client::HealthClient::new(guarded.replica.channel().await);
    health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap();
}

#[tokio::test]
async fn another_tenants_streams_do_not_exist() {
    let guarded = Guarded::start().await;
    let _router = guarded.replica.router("r1").await;
    let _worker = guarded.replica.worker("w1", &["a", "b", "c"]).await;
    let mut streams = guarded.replica.streams().await;
    let mut viewers = guarded.replica.viewers().await;
    let all = Scope::ALL;
    let a =
        streams.create_stream(guarded.ask(create("a"), "acme", all)).await.unwrap().into_inner();
    assert_eq!(a.tenant, "acme", "the caller's own, without asking");
    streams.create_stream(guarded.ask(create("b"), "other", all)).await.unwrap();
    streams.create_stream(guarded.ask(create("c"), "*", all)).await.unwrap();
    let mut foreign = create("c");
    foreign.stream.as_mut().unwrap().tenant = "other".to_owned();
    let refused = streams.create_stream(guarded.ask(foreign, "acme", all)).await.unwrap_err();
    assert_eq!(fields(&refused), ["stream.tenant".to_owned()].into());

    let names = |list: Vec<Stream>| list.into_iter().map(|s| s.name).collect::<Vec<_>>();
    for (tenant, seen) in [
        ("acme", vec!["streams/a"]),
        ("other", vec!["streams/b"]),
        ("*", vec!["streams/a", "streams/b", "streams/c"]),
    ] {
        let request = guarded.ask(ListStreamsRequest::default(), tenant, all);
        assert_eq!(names(streams.list_streams(request).await.unwrap().into_inner().streams), seen);
    }
    let none = |code: Code| assert_eq!(code, Code::NotFound);
    none(streams.get_stream(guarded.ask(get("streams/b"), "acme", all)).await.unwrap_err().code());
    let delete = DeleteStreamRequest { name: "streams/b".to_owned(), ..Default::default() };
    none(streams.delete_stream(guarded.ask(delete.clone(), "acme", all)).await.unwrap_err().code());
    let missing = DeleteStreamRequest { allow_missing: true, ..delete };
    streams.delete_stream(guarded.ask(missing, "acme", all)).await.unwrap();
    let update = UpdateStreamRequest {
        stream: Some(Stream { name: "streams/b".to_owned(), ..Default::default() }),
        ..Default::default()
    };
    none(streams.update_stream(guarded.ask(update, "acme", all)).await.unwrap_err().code());
    let invite = |viewer: &str| CreateViewerRequest {
        parent: "streams/b".to_owned(),
        viewer_id: viewer.to_owned(),
        ..Default::default()
    };
    none(viewers.create_viewer(guarded.ask(invite("v"), "acme", all)).await.unwrap_err().code());
    viewers.create_viewer(guarded.ask(invite("v"), "other", all)).await.unwrap();
    let viewer = GetViewerRequest { name: "streams/b/viewers/v".to_owned() };
    none(viewers.get_viewer(guarded.ask(viewer.clone(), "acme", all)).await.unwrap_err().code());
    viewers.get_viewer(guarded.ask(viewer, "other", all)).await.unwrap();
    let list = ListViewersRequest { parent: "streams/-".to_owned(), ..Default::default() };
    let request = guarded.ask(list, "acme", all);
    assert!(viewers.list_viewers(request).await.unwrap().into_inner().viewers.is_empty());
    // It is still there for its owner.
    streams.get_stream(guarded.ask(get("streams/b"), "other", all)).await.unwrap();

    let mut events = EventServiceClient::new(guarded.replica.channel().await);
    let request = guarded.ask(ListEventsRequest::default(), "acme", all);
    let heard = events.list_events(request).await.unwrap().into_inner().events;
    assert!(!heard.is_empty());
    assert!(heard.iter().all(|e| e.subject.starts_with("streams/a")), "{heard:?}");
}

#[tokio::test]
async fn a_recorded_answer_is_not_given_to_another_tenant() {
    let guarded = Guarded::start().await;
    let mut streams = guarded.replica.streams().await;
    let body = CreateStreamRequest { request_id: Uuid::new_v4().to_string(), ..pending("a") };
    streams.create_stream(guarded.ask(body.clone(), "acme", Scope::ALL)).await.unwrap();
    let refused = streams.create_stream(guarded.ask(body, "other", Scope::ALL)).await.unwrap_err();
    assert_eq!(reason(&refused), "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn a_caller_above_its_rate_is_told_when_to_come_back() {
    let guarded = Guarded::with(|cfg| (cfg.rate_per_second, cfg.rate_burst) = (1, 3)).await;
    let mut streams = guarded.replica.streams().await;
    let token = guarded.token("*", &[Scope::StreamsRead]);
    let list = || with_token(ListStreamsRequest::default(), &token);
    let mut refused = None;
    for _ in 0..10 {
        if let Err(e) = streams.list_streams(list()).await {
            refused = Some(e);
            break;
        }
    }
    let refused = refused.expect("ten calls at once are more than three");
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::ResourceExhausted, "RATE_LIMITED")
    );
    assert!(retryable(&refused));
    assert_eq!(refused.metadata().get("retry-after").unwrap(), "1");
    let other = guarded.ask(ListStreamsRequest::default(), "acme", &[Scope::StreamsRead]);
    streams.list_streams(other).await.expect("another caller has a rate of its own");
}

fn mask(paths: &[&str]) -> Option<prost_types::FieldMask> {
    Some(prost_types::FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() })
}

#[tokio::test]
async fn an_update_changes_what_the_mask_names_and_nothing_else() {
    let replica = Replica::start().await;
    let _router = replica.router("r1").await;
    let mut worker = replica.worker("w1", &["a"]).await;
    let mut streams = replica.streams().await;
    let a = streams.create_stream(create("a")).await.unwrap().into_inner();
    worker.want("a", 0).await;
    let new = Stream {
        name: a.name.clone(),
        labels: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        video: Some(VideoSpec { max_fps: 15, ..Default::default() }),
        limits: Some(StreamLimits { max_viewers: 3, max_controllers: 9, ..Default::default() }),
        ..Stream::default()
    };
    let update = |stream: Stream, paths: &[&str]| UpdateStreamRequest {
        stream: Some(stream),
        update_mask: mask(paths),
        ..Default::default()
    };
    let dry = UpdateStreamRequest { validate_only: true, ..update(new.clone(), &["labels"]) };
    let would = streams.update_stream(dry).await.unwrap().into_inner();
    assert_eq!(would.labels.len(), 1);
    assert!(streams.get_stream(get(&a.name)).await.unwrap().into_inner().labels.is_empty());

    let paths = ["labels", "limits.max_viewers", "video"];
    let b = streams.update_stream(update(new.clone(), &paths)).await.unwrap().into_inner();
    let limits = b.limits.unwrap();
    assert_eq!((b.labels.len(), limits.max_viewers, limits.max_controllers), (1, 3, 0));
    assert_ne!(b.etag, a.etag);
    assert_eq!(b.assignment, a.assignment, "the origin stays");
    // The worker hears of the new frame rate.
    let fps = |want: &fanlight_proto::node::v1::Want| match &want.role {
        Some(fanlight_proto::node::v1::want::Role::Ingest(role)) => role.max_fps,
        _ => 0,
    };
    worker.until("15 fps", |h| h.wants.get("streams/a").is_some_and(|w| fps(w) == 15)).await;

    let stale = Stream { etag: a.etag, ..new.clone() };
    let refused = streams.update_stream(update(stale, &["labels"])).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Aborted, "ETAG_MISMATCH"));
    let refused =
        streams.update_stream(update(new.clone(), &["device", "state"])).await.unwrap_err();
    assert_eq!(fields(&refused), ["update_mask".to_owned()].into());
    let same = UpdateStreamRequest {
        request_id: Uuid::new_v4().to_string(),
        ..update(Stream { labels: BTreeMap::new(), ..new }, &["labels"])
    };
    let once = streams.update_stream(same.clone()).await.unwrap().into_inner();
    let again = streams.update_stream(same).await.unwrap().into_inner();
    assert_eq!(once, again);
    assert!(once.labels.is_empty());
}

#[tokio::test]
async fn an_update_may_create_what_is_missing() {
    let replica = Replica::start().await;
    let mut streams = replica.streams().await;
    let stream = Stream {
        name: "streams/a".to_owned(),
        device: "devices/a".to_owned(),
        ..Stream::default()
    };
    let update = UpdateStreamRequest { stream: Some(stream), ..Default::default() };
    assert_eq!(streams.update_stream(update.clone()).await.unwrap_err().code(), Code::NotFound);
    let update = UpdateStreamRequest { allow_missing: true, ..update };
    let made = streams.update_stream(update).await.unwrap().into_inner();
    assert_eq!((made.name.as_str(), made.state()), ("streams/a", StreamState::Starved));
}

#[tokio::test]
async fn a_batch_answers_each_item_by_itself_and_in_order() {
    let replica = Replica::start().await;
    let _router = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a", "b"]).await;
    let mut streams = replica.streams().await;
    let requests = vec![create("a"), create("nobody"), create("b"), create("a")];
    let batch = BatchCreateStreamsRequest { requests };
    let results = streams.batch_create_streams(batch).await.unwrap().into_inner().results;
    let said: Vec<_> = results
        .into_iter()
        .map(|r| match r.result.unwrap() {
            create_stream_result::Result::Stream(s) => s.name,
            create_stream_result::Result::Error(e) => e.reason,
        })
        .collect();
    assert_eq!(said[..3], ["streams/a", "DEVICE_UNKNOWN", "streams/b"]);
    assert_eq!(said[3], "STREAM_EXISTS");

    let invite =
        |viewer: &str| CreateViewerRequest { viewer_id: viewer.to_owned(), ..Default::default() };
    let batch = BatchCreateViewersRequest {
        parent: "streams/a".to_owned(),
        requests: vec![invite("v1"), invite("no/name"), invite("v2")],
    };
    let results = replica.viewers().await.batch_create_viewers(batch).await.unwrap();
    let said: Vec<_> = results
        .into_inner()
        .results
        .into_iter()
        .map(|r| match r.result.unwrap() {
            create_viewer_result::Result::Response(r) => r.viewer.unwrap().name,
            create_viewer_result::Result::Error(e) => e.reason,
        })
        .collect();
    assert_eq!(said, ["streams/a/viewers/v1", "INVALID_ARGUMENT", "streams/a/viewers/v2"]);

    let delete = |name: &str| DeleteStreamRequest { name: name.to_owned(), ..Default::default() };
    let requests = vec![delete("streams/a"), delete("streams/x"), delete("streams/b")];
    let batch = BatchDeleteStreamsRequest { requests };
    let results = streams.batch_delete_streams(batch).await.unwrap().into_inner().results;
    let said: Vec<_> = results
        .into_iter()
        .map(|r| match r.result.unwrap() {
            delete_stream_result::Result::Response(r) => r.viewers_closed.to_string(),
            delete_stream_result::Result::Error(e) => e.reason,
        })
        .collect();
    assert_eq!(said, ["2", "STREAM_NOT_FOUND", "0"]);
    let many = BatchDeleteStreamsRequest { requests: vec![delete("streams/x"); 501] };
    let refused = streams.batch_delete_streams(many).await.unwrap_err();
    assert_eq!(fields(&refused), ["requests".to_owned()].into());
}

#[tokio::test]
async fn a_placement_is_explained_and_nothing_is_changed_by_it() {
    let replica = Replica::start().await;
    let _one = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a"]).await;
    replica.streams().await.create_stream(create("a")).await.unwrap();
    let _two = replica.router("r2").await;
    let before = replica.api.store().read_events(0, 0).await.unwrap().head;
    let mut nodes = replica.nodes().await;
    let ask = |kind: PlacementKind| ExplainPlacementRequest {
        stream: "streams/a".to_owned(),
        kind: kind.into(),
        ..Default::default()
    };
    let edge = nodes.explain_placement(ask(PlacementKind::Unspecified)).await.unwrap().into_inner();
    assert_eq!((edge.kind(), edge.chosen.as_str()), (PlacementKind::Edge, "nodes/r1"));
    let out = edge.candidates.iter().find(|c| c.node == "nodes/r2").unwrap();
    assert_eq!(out.excluded_by, "does not carry the stream");
    let origin = nodes.explain_placement(ask(PlacementKind::Origin)).await.unwrap().into_inner();
    assert!(origin.candidates.iter().all(|c| c.excluded_by.is_empty()), "{origin:?}");
    assert_eq!(origin.candidates.iter().filter(|c| c.already_carries_stream).count(), 1);
    assert_eq!(replica.api.store().read_events(0, 0).await.unwrap().head, before);
}
