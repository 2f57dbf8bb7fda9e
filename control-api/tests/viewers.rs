//! Viewers: invited with a token the routers can check alone, limited, listed, kicked, barred.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{FakeNode, Replica, create, fields, reason, retryable, router_hello};
use fanlight_proto::{
    claims::{JOIN_AUDIENCE, JOIN_ISSUER, JoinClaims, Role},
    control::v1::{
        CreateViewerRequest, GetStreamRequest, GetViewerRequest, KickViewerRequest,
        ListViewersRequest, StreamLimits, Viewer, ViewerState,
    },
    id::StreamId,
    node::v1::{Action, action::Action as Body, viewer_report::Kind},
    types::v1::{ViewerGrants, ViewerRole},
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, jwk::JwkSet};
use tonic::Code;

/// Checks a token as a router does: with what was pushed to it and nothing else.
fn verify(jwks: &str, token: &str) -> Result<JoinClaims, jsonwebtoken::errors::Error> {
    let jwks: JwkSet = serde_json::from_str(jwks).unwrap();
    let kid = jsonwebtoken::decode_header(token)?.kid.unwrap();
    let key = DecodingKey::from_jwk(jwks.find(&kid).unwrap())?;
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&[JOIN_AUDIENCE]);
    validation.set_issuer(&[JOIN_ISSUER]);
    jsonwebtoken::decode(token, &key, &validation).map(|t| t.claims)
}

fn invite(stream: &str, viewer: &str) -> CreateViewerRequest {
    CreateViewerRequest {
        parent: format!("streams/{stream}"),
        viewer_id: viewer.to_owned(),
        ..CreateViewerRequest::default()
    }
}

fn grants(role: ViewerRole) -> Option<Viewer> {
    let grants = ViewerGrants { role: role.into(), ..ViewerGrants::default() };
    Some(Viewer { grants: Some(grants), ..Viewer::default() })
}

fn get(name: &str) -> GetViewerRequest {
    GetViewerRequest { name: name.to_owned() }
}

fn kick(name: &str) -> KickViewerRequest {
    KickViewerRequest { name: name.to_owned(), reason: "test".to_owned(), ..Default::default() }
}

fn secs(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// A stream `a` on router `r1` from worker `w1`.
async fn scene(limits: StreamLimits) -> (Replica, FakeNode, FakeNode) {
    let replica = Replica::start().await;
    let router = replica.router("r1").await;
    let worker = replica.worker("w1", &["a"]).await;
    let mut request = create("a");
    request.stream.as_mut().unwrap().limits = Some(limits);
    replica.streams().await.create_stream(request).await.unwrap();
    (replica, router, worker)
}

/// Waits until a viewer is in a state.
async fn reach(replica: &Replica, name: &str, state: ViewerState) -> Viewer {
    let mut viewers = replica.viewers().await;
    let mut events = replica.api.store().subscribe();
    let reached = async {
        loop {
            let viewer = viewers.get_viewer(get(name)).await.unwrap().into_inner();
            if viewer.state() == state {
                return viewer;
            }
            let _ = events.recv().await;
        }
    };
    tokio::time::timeout(common::SOON, reached).await.unwrap()
}

#[tokio::test]
async fn an_invitation_carries_a_token_that_the_router_can_check_alone() {
    let (replica, mut router, _worker) = scene(StreamLimits::default()).await;
    let mut viewers = replica.viewers().await;
    let mut request = invite("a", "ann");
    request.viewer = grants(ViewerRole::Controller);
    let given = request.viewer.as_mut().unwrap();
    given.user = "user-7".to_owned();
    given.grants.as_mut().unwrap().max_bitrate_bps = 3_000_000;
    given.grants.as_mut().unwrap().max_session = secs(600);
    request.join_ttl = secs(120);
    let answer = viewers.create_viewer(request).await.unwrap().into_inner();
    assert_eq!(answer.whep_url, "http://r1.example:8080/whep/a");
    let viewer = answer.viewer.unwrap();
    assert_eq!(viewer.name, "streams/a/viewers/ann");
    assert_eq!((viewer.state(), viewer.edge_node.as_str()), (ViewerState::Invited, "nodes/r1"));

    let jwks = router.until("has keys", |h| h.jwks.is_some()).await.jwks.unwrap();
    let claims = verify(&jwks, &answer.join_token).unwrap();
    let now = fanlight_control::clock::unix_seconds();
    assert!((now + 115..=now + 120).contains(&claims.exp), "{} at {now}", claims.exp);
    assert_eq!(claims.sub.as_str(), "ann");
    assert_eq!(claims.s.as_str(), "a");
    assert_eq!(claims.n.unwrap().as_str(), "r1");
    assert_eq!(
        (claims.r, claims.br, claims.ms, claims.multi),
        (Role::Controller, 3_000_000, 600, false)
    );
    let get = GetStreamRequest { name: "streams/a".into() };
    let stream = replica.streams().await.get_stream(get).await.unwrap().into_inner();
    assert_eq!(claims.e, stream.assignment.unwrap().epoch);
    assert!(!claims.jti.is_empty());
}

#[tokio::test]
async fn viewers_follow_the_routers_reports() {
    let (replica, router, _worker) = scene(StreamLimits::default()).await;
    let mut viewers = replica.viewers().await;
    viewers.create_viewer(invite("a", "ann")).await.unwrap();
    let name = "streams/a/viewers/ann";
    router.report_viewer(name, Kind::Connected).await;
    let viewer = reach(&replica, name, ViewerState::Connected).await;
    assert!(viewer.connect_time.is_some());
    let stream = GetStreamRequest { name: "streams/a".into() };
    let stream = replica.streams().await.get_stream(stream).await.unwrap().into_inner();
    assert_eq!(stream.viewer_count, 1);
    router.report_viewer(name, Kind::Gone).await;
    reach(&replica, name, ViewerState::Gone).await;
}

#[tokio::test]
async fn a_viewer_nobody_invited_here_is_taken_as_the_router_says() {
    let (replica, router, _worker) = scene(StreamLimits::default()).await;
    router.report_viewer("not a name", Kind::Connected).await;
    router.report_viewer("streams/a/viewers/demo-1", Kind::Connected).await;
    let mut viewers = replica.viewers().await;
    let mut events = replica.api.store().subscribe();
    let listed = async {
        loop {
            let list = ListViewersRequest { parent: "streams/a".into(), ..Default::default() };
            let list = viewers.list_viewers(list).await.unwrap().into_inner().viewers;
            if let [one] = &list[..] {
                return one.name.clone();
            }
            let _ = events.recv().await;
        }
    };
    let name = tokio::time::timeout(common::SOON, listed).await.unwrap();
    assert_eq!(name, "streams/a/viewers/demo-1");
}

#[tokio::test]
async fn limits_of_a_stream_hold() {
    let limits = StreamLimits { max_viewers: 2, max_controllers: 1, idle_timeout: None };
    let (replica, router, _worker) = scene(limits).await;
    let mut viewers = replica.viewers().await;
    let mut first = invite("a", "one");
    first.viewer = grants(ViewerRole::Controller);
    viewers.create_viewer(first).await.unwrap();
    let twice = viewers.create_viewer(invite("a", "one")).await.unwrap_err();
    assert_eq!((twice.code(), reason(&twice).as_str()), (Code::AlreadyExists, "VIEWER_EXISTS"));
    let mut second = invite("a", "two");
    second.viewer = grants(ViewerRole::Controller);
    let refused = viewers.create_viewer(second).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::ResourceExhausted, "STREAM_LIMIT")
    );
    viewers.create_viewer(invite("a", "two")).await.unwrap();
    let third = viewers.create_viewer(invite("a", "three")).await.unwrap_err();
    assert_eq!(reason(&third), "STREAM_LIMIT");
    router.report_viewer("streams/a/viewers/two", Kind::Connected).await;
    router.report_viewer("streams/a/viewers/two", Kind::Gone).await;
    reach(&replica, "streams/a/viewers/two", ViewerState::Gone).await;
    viewers.create_viewer(invite("a", "three")).await.unwrap();
}

#[tokio::test]
async fn the_same_request_gets_the_same_token() {
    let (replica, _router, _worker) = scene(StreamLimits::default()).await;
    let mut viewers = replica.viewers().await;
    let mut request = invite("a", "");
    request.request_id = "6ba7b810-9dad-11d1-80b4-00c04fd43001".to_owned();
    let first = viewers.create_viewer(request.clone()).await.unwrap().into_inner();
    let again = viewers.create_viewer(request.clone()).await.unwrap().into_inner();
    assert_eq!(first, again);
    request.viewer = grants(ViewerRole::Controller);
    let reused = viewers.create_viewer(request).await.unwrap_err();
    assert_eq!(reason(&reused), "REQUEST_ID_REUSED");
}

fn kicks(actions: &[Action], name: &str) -> usize {
    let is = |a: &&Action| matches!(&a.action, Some(Body::Kick(k)) if k.viewer == name);
    actions.iter().filter(is).count()
}

fn bars(actions: &[Action], jti: &str) -> bool {
    let is = |a: &Action| matches!(&a.action, Some(Body::Bar(b)) if b.token_ids.iter().any(|t| t == jti));
    actions.iter().any(is)
}

#[tokio::test]
async fn a_kick_bars_the_token_closes_the_session_and_stays() {
    let (replica, mut router, _worker) = scene(StreamLimits::default()).await;
    let mut viewers = replica.viewers().await;
    let token = viewers.create_viewer(invite("a", "ann")).await.unwrap().into_inner().join_token;
    let jwks = router.until("has keys", |h| h.jwks.is_some()).await.jwks.unwrap();
    let jti = verify(&jwks, &token).unwrap().jti;
    let name = "streams/a/viewers/ann";
    router.report_viewer(name, Kind::Connected).await;
    reach(&replica, name, ViewerState::Connected).await;

    let answer = viewers.kick_viewer(kick(name)).await.unwrap().into_inner();
    assert!(answer.acknowledged);
    let heard = router.heard();
    assert!(bars(&heard.actions, &jti));
    assert_eq!(kicks(&heard.actions, name), 1);
    reach(&replica, name, ViewerState::Gone).await;

    // A router that says it is back is told again.
    router.report_viewer(name, Kind::Connected).await;
    router.until("kicks again", |h| kicks(&h.actions, name) == 2).await;
    // A router that links anew hears of the bar.
    router.die();
    let mut again = FakeNode::link(&replica, router_hello("r1", 2)).await;
    again.until("hears the bar", |h| bars(&h.actions, &jti)).await;
    let unknown = viewers.kick_viewer(kick("streams/a/viewers/bob")).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "VIEWER_NOT_FOUND"));
}

#[tokio::test]
async fn a_kick_that_no_router_hears_is_stored_and_says_so() {
    let (replica, router, _worker) = scene(StreamLimits::default()).await;
    let mut viewers = replica.viewers().await;
    viewers.create_viewer(invite("a", "ann")).await.unwrap();
    router.die();
    replica.node_state("r1", fanlight_proto::types::v1::NodeState::Suspect).await;
    let answer = viewers.kick_viewer(kick("streams/a/viewers/ann")).await.unwrap().into_inner();
    assert!(!answer.acknowledged);
    reach(&replica, "streams/a/viewers/ann", ViewerState::Gone).await;
}

#[tokio::test]
async fn a_ban_closes_all_of_a_user_and_keeps_them_out() {
    let (replica, router, _worker) = scene(StreamLimits::default()).await;
    let mut viewers = replica.viewers().await;
    for id in ["phone", "desk"] {
        let mut request = invite("a", id);
        request.viewer = Some(Viewer { user: "mallory".to_owned(), ..Viewer::default() });
        viewers.create_viewer(request).await.unwrap();
    }
    let mut request = kick("streams/a/viewers/phone");
    request.ban = secs(3600);
    assert!(viewers.kick_viewer(request).await.unwrap().into_inner().acknowledged);
    assert_eq!(kicks(&router.heard().actions, "streams/a/viewers/desk"), 1);
    let mut back = invite("a", "tablet");
    back.viewer = Some(Viewer { user: "mallory".to_owned(), ..Viewer::default() });
    let barred = viewers.create_viewer(back).await.unwrap_err();
    assert_eq!(
        (barred.code(), reason(&barred).as_str()),
        (Code::PermissionDenied, "VIEWER_BARRED")
    );
    viewers.create_viewer(invite("a", "other")).await.unwrap();
}

#[tokio::test]
async fn a_viewer_needs_a_stream_that_a_router_carries() {
    let replica = Replica::start().await;
    let mut viewers = replica.viewers().await;
    let unknown = viewers.create_viewer(invite("a", "ann")).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "STREAM_NOT_FOUND"));
    let mut pending = create("a");
    pending.allow_pending = true;
    replica.streams().await.create_stream(pending).await.unwrap();
    let early = viewers.create_viewer(invite("a", "ann")).await.unwrap_err();
    assert_eq!((early.code(), retryable(&early)), (Code::ResourceExhausted, true));
}

#[tokio::test]
async fn wrong_fields_are_refused_and_named_together() {
    let (replica, _router, _worker) = scene(StreamLimits::default()).await;
    let mut viewers = replica.viewers().await;
    let bad = CreateViewerRequest {
        parent: "a".to_owned(),
        viewer_id: "x y".to_owned(),
        client_ip: "here".to_owned(),
        request_id: "1".to_owned(),
        join_ttl: secs(601),
        viewer: Some(Viewer {
            user: "\u{7}".to_owned(),
            grants: Some(ViewerGrants {
                role: 99,
                priority: 256,
                max_session: secs(-1),
                ..ViewerGrants::default()
            }),
            ..Viewer::default()
        }),
    };
    let refused = viewers.create_viewer(bad).await.unwrap_err();
    let want: std::collections::BTreeSet<String> = [
        "parent",
        "viewer_id",
        "client_ip",
        "request_id",
        "join_ttl",
        "viewer.user",
        "viewer.grants.role",
        "viewer.grants.priority",
        "viewer.grants.max_session",
    ]
    .map(str::to_owned)
    .into();
    assert_eq!((refused.code(), fields(&refused)), (Code::InvalidArgument, want));
    let bad = KickViewerRequest {
        name: "streams/a".to_owned(),
        reason: "x".repeat(513),
        ban: secs(400 * 86_400),
        request_id: "-".to_owned(),
    };
    let refused = viewers.kick_viewer(bad).await.unwrap_err();
    let want = ["name", "reason", "ban", "request_id"].map(str::to_owned).into();
    assert_eq!(fields(&refused), want);
    let bad = ListViewersRequest { parent: "viewers/a".to_owned(), ..Default::default() };
    assert_eq!(fields(&viewers.list_viewers(bad).await.unwrap_err()), ["parent".to_owned()].into());
}

#[tokio::test]
async fn viewers_of_all_streams_are_paged_in_order() {
    let replica = Replica::start().await;
    let _router = replica.router("r1").await;
    let _worker = replica.worker("w1", &["a", "b"]).await;
    for device in ["a", "b"] {
        replica.streams().await.create_stream(create(device)).await.unwrap();
    }
    let mut viewers = replica.viewers().await;
    let mut want = Vec::new();
    for stream in ["a", "b"] {
        for n in 0..3 {
            viewers.create_viewer(invite(stream, &format!("v{n}"))).await.unwrap();
            want.push(format!("streams/{stream}/viewers/v{n}"));
        }
    }
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListViewersRequest {
            parent: "streams/-".to_owned(),
            page_size: 2,
            page_token,
            ..Default::default()
        };
        let page = viewers.list_viewers(request).await.unwrap().into_inner();
        seen.extend(page.viewers.into_iter().map(|v| v.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
        // A token of this list is of no use in another.
        let foreign = ListViewersRequest {
            parent: "streams/a".to_owned(),
            page_token: page_token.clone(),
            ..Default::default()
        };
        let refused = viewers.list_viewers(foreign).await.unwrap_err();
        assert_eq!(fields(&refused), ["page_token".to_owned()].into());
    }
    assert_eq!(seen, want);
}

#[tokio::test]
async fn demo_tokens_are_reusable_and_only_for_demos() {
    let (replica, mut router, _worker) = scene(StreamLimits::default()).await;
    let stream = StreamId::parse("a").unwrap();
    let token = replica.api.mint_demo_token(&stream, Role::Controller).unwrap();
    let jwks = router.until("has keys", |h| h.jwks.is_some()).await.jwks.unwrap();
    let claims = verify(&jwks, &token).unwrap();
    assert!(claims.multi && claims.exp > fanlight_control::clock::unix_seconds() + 86_400);
    let strict = Replica::with(|cfg| cfg.demo = false).await;
    assert!(strict.api.mint_demo_token(&stream, Role::Observer).is_err());
}
