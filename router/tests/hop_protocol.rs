//! The hop seen from an ingest worker, well-behaved and not: who may connect, who may publish, and
//! what each kind of bad bytes costs whom.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{
    TOKEN, World,
    clip::{frame, nals},
    eventually, node_identity,
    publisher::{self, Publisher, client_tls, dial, hello, live_stream, until_live},
    soon,
    viewer::Viewer,
};
use fanlight_ops::pki::{self, Ca};
use fanlight_proto::{
    node::v1::{self as pb, hop_message::Body},
    types::v1::StreamState,
};
use fanlight_wire::roq::{ALPN_FANLIGHT, FlowId, Slot, write_packet, write_stream_header};
use quinn::{ConnectionError, VarInt};

const GOP: u32 = 30;

fn rejected(body: Body) -> (String, u32) {
    match body {
        Body::PublishReject(reject) => (reject.reason, reject.retry_after_ms),
        other => panic!("instead of a refusal: {other:?}"),
    }
}

/// A viewer still gets what the publisher sends: nothing that happened before did harm.
async fn still_works(world: &World, publisher: &mut Publisher, number: u32) {
    let mut viewer = Viewer::join(world, "pixel", &world.token("pixel", "check")).await;
    let key = number.next_multiple_of(GOP);
    publisher.send_frame(1, &frame(key, GOP), key * 3_000).await;
    while nals(&viewer.frame().await.0) != nals(&frame(key, GOP)) {}
}

// ---- who may connect ----

#[tokio::test]
async fn a_client_without_certificate_is_not_let_in() {
    let world = World::new().await;
    let mut publisher = live_stream(&world, GOP).await;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(
            rustls_pki_types::pem::PemObject::from_pem_slice(world.ca.cert_pem().as_bytes())
                .unwrap(),
        )
        .unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(pki::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN_FANLIGHT.to_vec()];
    // With TLS 1.3 the client has finished before the server has looked.
    if let Ok(conn) = dial(tls, world.router.quic_addr()).await {
        let closed = soon("close", conn.closed()).await;
        assert!(matches!(closed, ConnectionError::ConnectionClosed(_)), "{closed:?}");
    }
    still_works(&world, &mut publisher, 30).await;
    world.end().await;
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_not_let_in() {
    let world = World::new().await;
    let stranger = Ca::generate().unwrap();
    let theirs = node_identity(&stranger, "w1");
    let tls = client_tls(&theirs, ALPN_FANLIGHT);
    // They do not trust us either.
    assert!(dial(tls, world.router.quic_addr()).await.is_err());
    world.end().await;
}

#[tokio::test]
async fn a_wrong_protocol_is_not_let_in() {
    let world = World::new().await;
    let mut publisher = live_stream(&world, GOP).await;
    for alpn in [&b"h3"[..], b"roq", b"roq-14-fl2"] {
        let tls = client_tls(&node_identity(&world.ca, "w2"), alpn);
        let error = dial(tls, world.router.quic_addr()).await.unwrap_err();
        match error {
            ConnectionError::ConnectionClosed(close) => {
                assert_eq!(u64::from(close.error_code), 0x178, "no_application_protocol");
            }
            other => panic!("{other:?}"),
        }
    }
    still_works(&world, &mut publisher, 30).await;
    world.end().await;
}

#[tokio::test]
async fn hello_must_name_the_certificates_node() {
    let world = World::new().await;
    let mut impostor = Publisher::dial(&world, "w2").await;
    impostor.tell(hello("w1")).await;
    assert_eq!(impostor.closed().await.0, 0x1000);
    let mut old = Publisher::dial(&world, "w2").await;
    let body = pb::HopHello { version: 0, node: "nodes/w2".into(), incarnation: 1 };
    old.tell(Body::Hello(body)).await;
    assert_eq!(old.closed().await.0, 0x1004);
    let mut hasty = Publisher::dial(&world, "w2").await;
    hasty.tell(Body::Publish(publisher::publish(1, "pixel", 5, TOKEN))).await;
    assert_eq!(hasty.closed().await.0, 0x07);
    world.end().await;
}

// ---- who may publish ----

#[tokio::test]
async fn publishes_are_refused_with_the_reason_and_whether_to_retry() {
    let world = World::new().await;
    world.want("pixel", 5).await;
    let mut w1 = Publisher::connect(&world, "w1").await;
    let unknown = w1.publish(1, "nothing", 5, TOKEN).await;
    assert_eq!(rejected(unknown), ("STREAM_NOT_FOUND".into(), 500));
    let early = w1.publish(1, "pixel", 6, TOKEN).await;
    assert_eq!(rejected(early), ("STREAM_NOT_FOUND".into(), 200));
    let stale = w1.publish(1, "pixel", 4, TOKEN).await;
    assert_eq!(rejected(stale), ("STALE_EPOCH".into(), 0));
    for wrong in [&b""[..], b"push-secre", b"push-secret2"] {
        let denied = w1.publish(1, "pixel", 5, wrong).await;
        assert_eq!(rejected(denied), ("PUBLISH_DENIED".into(), 0));
    }
    for slot in [0, 65, u32::MAX] {
        let refused = w1.publish(slot, "pixel", 5, TOKEN).await;
        assert_eq!(rejected(refused), ("INVALID_ARGUMENT".into(), 0));
    }
    let vp8 = pb::Publish { codec: "VP8".into(), ..publisher::publish(1, "pixel", 5, TOKEN) };
    w1.tell(Body::Publish(vp8)).await;
    assert_eq!(rejected(w1.next().await), ("UNSUPPORTED".into(), 0));
    let name = pb::Publish { stream: "pixel".into(), ..publisher::publish(1, "", 5, TOKEN) };
    w1.tell(Body::Publish(name)).await;
    assert_eq!(rejected(w1.next().await), ("INVALID_ARGUMENT".into(), 0));
    // After all of that, the right one is taken.
    w1.published(1, "pixel", 5).await;
    world.end().await;
}

#[tokio::test]
async fn only_the_assigned_worker_may_publish_when_one_is_named() {
    let world = World::new().await;
    let mut want = common::origin_want("pixel", 5);
    let Some(pb::want::Role::Origin(origin)) = &mut want.role else { panic!() };
    origin.ingest_node = "nodes/w1".into();
    let apply = pb::Apply { wants: vec![want], ..pb::Apply::default() };
    world.router.handler().apply(apply).await;
    let mut w2 = Publisher::connect(&world, "w2").await;
    assert_eq!(rejected(w2.publish(1, "pixel", 5, TOKEN).await).0, "PUBLISH_DENIED");
    let mut w1 = Publisher::connect(&world, "w1").await;
    w1.published(1, "pixel", 5).await;
    world.end().await;
}

#[tokio::test]
async fn a_higher_epoch_ends_the_publish_below_it_for_good() {
    let world = World::new().await;
    let mut old = live_stream(&world, GOP).await;
    world.want("pixel", 7).await;
    match old.next().await {
        Body::Unpublish(end) => assert_eq!((end.slot, end.reason.as_str()), (1, "STALE_EPOCH")),
        other => panic!("{other:?}"),
    }
    assert_eq!(rejected(old.publish(1, "pixel", 5, TOKEN).await), ("STALE_EPOCH".into(), 0));
    // Its frames are stopped with the code that says why.
    let mut stream = old.conn.open_uni().await.unwrap();
    let bytes = old.frame_bytes(1, &frame(30, GOP), 1);
    let _ = stream.write_all(&bytes).await;
    let stopped = soon("stop", stream.stopped()).await.unwrap();
    assert_eq!(stopped, Some(VarInt::from_u32(0x1001)));
    // And an assignment below the greatest epoch seen is refused, also after the stream ended.
    let ack = world.want("pixel", 6).await;
    assert_eq!(ack.refusals[0].status.as_ref().unwrap().reason, "STALE_EPOCH");
    world.apply(true, &[]).await;
    let ack = world.want("pixel", 6).await;
    assert_eq!(ack.refusals[0].status.as_ref().unwrap().reason, "STALE_EPOCH");
    assert_eq!(world.router.handler().max_epoch_seen(), 7);
    world.end().await;
}

#[tokio::test]
async fn slots_are_independent() {
    let world = World::new().await;
    let mut w1 = live_stream(&world, GOP).await;
    world.want("tablet", 9).await;
    w1.published(2, "tablet", 9).await;
    // Two flows have numbers of their own; here one sender's numbers serve both.
    w1.send_frame(2, &frame(60, GOP), 0).await;
    until_live(&world, "tablet").await;
    w1.tell(Body::Unpublish(pb::Unpublish { slot: 1, reason: String::new() })).await;
    let handler = world.router.handler();
    let state = |name: &str| {
        let running = handler.running();
        let found = running.iter().find(|r| r.assignment.as_ref().unwrap().stream == name);
        found.unwrap().state()
    };
    eventually("pixel is offline", || state("streams/pixel") == StreamState::Assigned).await;
    assert_eq!(state("streams/tablet"), StreamState::Live);
    world.end().await;
}

// ---- bad bytes ----

#[tokio::test]
async fn garbage_on_the_control_stream_costs_the_connection() {
    let world = World::new().await;
    let mut good = live_stream(&world, GOP).await;
    // Not a control stream; an absurd length; a frame that is no message.
    let dial_raw = || async {
        let tls = client_tls(&node_identity(&world.ca, "w2"), ALPN_FANLIGHT);
        dial(tls, world.router.quic_addr()).await.unwrap()
    };
    let cases: &[(&[u8], u64)] = &[
        (&[0x08, 0x00], 0x04),
        (&[0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 0x1005),
        (&[0x00, 0x04, 0xff, 0xff, 0xff, 0xff], 0x03),
    ];
    for (bytes, code) in cases {
        let conn = dial_raw().await;
        let (mut send, _recv) = conn.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        match soon("close", conn.closed()).await {
            ConnectionError::ApplicationClosed(close) => {
                assert_eq!(close.error_code.into_inner(), *code, "{bytes:02x?}");
            }
            other => panic!("{bytes:02x?}: {other:?}"),
        }
    }
    // After Welcome as well, and a second bidirectional stream too.
    let mut late = Publisher::connect(&world, "w2").await;
    late.send.write_all(&[0x02, 0xff, 0xff]).await.unwrap();
    assert_eq!(late.closed().await.0, 0x03);
    let second = Publisher::connect(&world, "w2").await;
    let (mut send, _recv) = second.conn.open_bi().await.unwrap();
    send.write_all(&[0x08]).await.unwrap();
    assert_eq!(second.closed().await.0, 0x04);
    still_works(&world, &mut good, 30).await;
    world.end().await;
}

#[tokio::test]
async fn unknown_control_messages_are_ignored() {
    let world = World::new().await;
    let mut w1 = live_stream(&world, GOP).await;
    // An empty message is what an unknown field of a later version looks like.
    w1.send.write_all(&[0x00]).await.unwrap();
    w1.tell(hello("w1")).await;
    w1.tell(Body::Ping(pb::HopPing { sent_us: 77 })).await;
    match w1.next().await {
        Body::Pong(pong) => assert_eq!(pong.sent_us, 77),
        other => panic!("{other:?}"),
    }
    world.end().await;
}

#[tokio::test]
async fn bad_frames_cost_only_themselves() {
    let world = World::with(|cfg| cfg.limits.hop_frame_bytes_max = 1 << 16).await;
    let mut w1 = live_stream(&world, GOP).await;
    let video = FlowId::video(Slot::new(1).unwrap());
    let mut head = Vec::new();
    write_stream_header(video, &mut head);

    // A frame without its end, one cut inside a packet, one that is no RTP, an empty one.
    let whole = w1.frame_bytes(1, &frame(30, GOP), 90_000);
    w1.send_raw(&whole[..whole.len() - 700]).await;
    let mut partial = head.clone();
    let packets = w1.packets(&frame(30, GOP), 93_000);
    packets[..packets.len() - 1].iter().for_each(|p| write_packet(p, &mut partial));
    w1.send_raw(&partial).await;
    let mut junk = head.clone();
    write_packet(b"junk", &mut junk);
    w1.send_raw(&junk).await;
    w1.send_raw(&head).await;

    // An oversize frame is stopped while it is being sent.
    let mut big = w1.conn.open_uni().await.unwrap();
    let au = vec![0x65; 1 << 20];
    let mut annex_b = Vec::new();
    fanlight_wire::h264::write_nal(&au, &mut annex_b);
    let bytes = w1.frame_bytes(1, &annex_b, 96_000);
    let _ = big.write_all(&bytes).await;
    assert_eq!(soon("stop", big.stopped()).await.unwrap(), Some(VarInt::from_u32(0x1005)));
    // A flow that was not published.
    let mut lost = w1.conn.open_uni().await.unwrap();
    let bytes = w1.frame_bytes(9, &frame(30, GOP), 99_000);
    let _ = lost.write_all(&bytes).await;
    assert_eq!(soon("stop", lost.stopped()).await.unwrap(), Some(VarInt::from_u32(0x06)));
    // A frame that its sender gives up.
    let mut reset = w1.conn.open_uni().await.unwrap();
    reset.write_all(&whole[..500]).await.unwrap();
    reset.reset(VarInt::from_u32(0x05)).unwrap();

    still_works(&world, &mut w1, 60).await;
    world.end().await;
}

#[tokio::test]
async fn nothing_but_bad_frames_costs_the_connection() {
    let world = World::new().await;
    let w1 = live_stream(&world, GOP).await;
    let mut junk = Vec::new();
    write_stream_header(FlowId::video(Slot::new(1).unwrap()), &mut junk);
    write_packet(b"junk", &mut junk);
    for _ in 0..200 {
        let Ok(mut stream) = w1.conn.open_uni().await else { break };
        let _ = stream.write_all(&junk).await;
        let _ = stream.finish();
    }
    assert_eq!(w1.closed().await.0, 0x03);
    world.end().await;
}

#[tokio::test]
async fn a_lost_frame_costs_one_gap_and_a_keyframe_request() {
    let world = World::new().await;
    let mut w1 = live_stream(&world, GOP).await;
    let mut viewer = Viewer::join(&world, "pixel", &world.token("pixel", "ann")).await;
    assert_eq!(nals(&viewer.frame().await.0), nals(&frame(0, GOP)));
    let _lost = w1.frame_bytes(1, &frame(1, GOP), 3_000);
    w1.send_frame(1, &frame(2, GOP), 6_000).await;
    match w1.next().await {
        Body::KeyframeRequest(request) => {
            assert_eq!((request.slot, request.reason.as_str()), (1, "Gap"))
        }
        other => panic!("{other:?}"),
    }
    w1.send_frame(1, &frame(30, GOP), 9_000).await;
    let (au, _, gap) = viewer.frame().await;
    assert_eq!(nals(&au), nals(&frame(30, GOP)), "what cannot be decoded is not shown");
    assert!(!gap, "and the viewer sees no hole");
    world.end().await;
}

#[tokio::test]
async fn connections_are_bounded() {
    let world = World::with(|cfg| cfg.limits.hop_connections_max = 2).await;
    let _one = Publisher::connect(&world, "w1").await;
    let two = Publisher::connect(&world, "w2").await;
    let tls = || client_tls(&node_identity(&world.ca, "w3"), ALPN_FANLIGHT);
    assert!(dial(tls(), world.router.quic_addr()).await.is_err(), "no room for a third");
    two.vanish();
    soon("room again", async { while dial(tls(), world.router.quic_addr()).await.is_err() {} })
        .await;
    world.end().await;
}
