//! The whole path over real sockets: a publisher on QUIC, a viewer on WebRTC, the router between
//! them. Each test states what a user would see.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{
    World,
    clip::{frame, nals},
    eventually,
    publisher::{Publisher, live_stream},
    viewer::{Seen, Viewer},
};
use fanlight_proto::node::v1::hop_message::Body;
use fanlight_wire::input::{
    DeviceBody, DeviceMessage, InputBody, InputMessage, Touch, TouchAction,
};

const GOP: u32 = 30;
/// 30 frames/s on a 90 kHz clock.
const TICKS: u32 = 3_000;

#[tokio::test]
async fn a_viewer_gets_exactly_the_published_access_units() {
    let world = World::new().await;
    let mut publisher = live_stream(&world, GOP).await;
    let mut viewer = Viewer::join(&world, "pixel", &world.token("pixel", "ann")).await;
    for number in 0..100 {
        // One at a time: frames sent all at once may be overtaken by the next keyframe.
        if number > 0 {
            publisher.send_frame(1, &frame(number, GOP), number * TICKS).await;
        }
        let (au, _, gap) = viewer.frame().await;
        assert_eq!(nals(&au), nals(&frame(number, GOP)), "frame {number}");
        assert!(!gap, "frame {number}");
    }
    viewer.close().await;
    eventually("the session is forgotten", || world.router.census().sessions == [0; 3]).await;
    world.end().await;
}

#[tokio::test]
async fn a_viewer_whose_network_lets_no_udp_through_watches_by_tcp() {
    let world = World::with(|cfg| cfg.ice.tcp = true).await;
    let mut publisher = live_stream(&world, GOP).await;
    let token = world.token("pixel", "ann");
    let (mut viewer, bridge) = Viewer::join_by_tcp(&world, "pixel", &token).await;
    for number in 0..60 {
        if number > 0 {
            publisher.send_frame(1, &frame(number, GOP), number * TICKS).await;
        }
        let (au, _, gap) = viewer.frame().await;
        assert_eq!(nals(&au), nals(&frame(number, GOP)), "frame {number}");
        assert!(!gap, "frame {number}");
    }
    viewer.close().await;
    eventually("the session is forgotten", || world.router.census().sessions == [0; 3]).await;
    drop(bridge);
    world.end().await;
}

#[tokio::test]
async fn an_operator_sees_how_each_viewer_fares() {
    let world = World::new().await;
    let mut publisher = live_stream(&world, GOP).await;
    let mut viewer = Viewer::join(&world, "pixel", &world.token("pixel", "ann")).await;
    assert_eq!(nals(&viewer.frame().await.0), nals(&frame(0, GOP)));
    publisher.send_frame(1, &frame(1, GOP), TICKS).await;
    viewer.frame().await;
    // Asked as the admin listener would be; twice at once is refused.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/viewers", listener.local_addr().unwrap());
    let routes = world.router.admin_routes();
    let serving = tokio::spawn(async move { axum::serve(listener, routes).await });
    let ask = || async { world.http.get(&url).send().await.unwrap() };
    let (one, other) = tokio::join!(ask(), ask());
    let mut statuses = [one.status().as_u16(), other.status().as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 429]);
    let answer = if one.status() == 200 { one } else { other };
    let rows: serde_json::Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let row = &rows.as_array().unwrap()[0];
    assert_eq!((&row["viewer"], &row["stream"]), (&"ann".into(), &"pixel".into()));
    assert_eq!((&row["state"], &row["share"]), (&"live".into(), &"full".into()));
    assert!(row["remote"].as_str().unwrap().starts_with("127.0.0.1:"), "{row}");
    serving.abort();
    world.end().await;
}

#[tokio::test]
async fn a_late_joiner_gets_the_current_group_of_pictures_at_once() {
    let world = World::new().await;
    let mut publisher = live_stream(&world, GOP).await;
    for number in 1..10 {
        publisher.send_frame(1, &frame(number, GOP), number * TICKS).await;
    }
    // Nothing more is sent: what arrives can only come from the cache.
    let mut viewer = Viewer::join(&world, "pixel", &world.token("pixel", "ann")).await;
    let mut last_time = None;
    for number in 0..10 {
        let (au, time, gap) = viewer.frame().await;
        assert_eq!(nals(&au), nals(&frame(number, GOP)), "frame {number}");
        assert!(!gap, "frame {number}");
        assert!(last_time.is_none_or(|last: u32| time.wrapping_sub(last) < 1 << 31));
        last_time = Some(time);
    }
    // And a second one, for whom the shard has it already.
    let mut second = Viewer::join(&world, "pixel", &world.token("pixel", "bob")).await;
    assert_eq!(nals(&second.frame().await.0), nals(&frame(0, GOP)));
    world.end().await;
}

#[tokio::test]
async fn a_restarted_publisher_brings_the_picture_back_to_the_same_viewer() {
    let world = World::new().await;
    let publisher = live_stream(&world, GOP).await;
    let mut viewer = Viewer::join(&world, "pixel", &world.token("pixel", "ann")).await;
    assert_eq!(nals(&viewer.frame().await.0), nals(&frame(0, GOP)));
    publisher.vanish();

    // The same assignment again, with other numbers and times.
    let mut again = Publisher::connect(&world, "w1").await;
    again.published(3, "pixel", 5).await;
    again.send_frame(3, &frame(60, GOP), 1_000_000).await;
    again.send_frame(3, &frame(61, GOP), 1_003_000).await;
    for number in [60, 61] {
        let (au, _, gap) = viewer.frame().await;
        assert_eq!(nals(&au), nals(&frame(number, GOP)));
        assert!(!gap, "the viewer's sequence numbers go on");
    }

    // And a move to a higher epoch, taken over by another worker.
    world.want("pixel", 6).await;
    assert!(matches!(again.next().await, Body::Unpublish(u) if u.reason == "STALE_EPOCH"));
    let mut other = Publisher::connect(&world, "w2").await;
    other.published(1, "pixel", 6).await;
    other.send_frame(1, &frame(90, GOP), 5).await;
    let (au, _, gap) = viewer.frame().await;
    assert_eq!(nals(&au), nals(&frame(90, GOP)));
    assert!(!gap);
    world.end().await;
}

#[tokio::test]
async fn frames_that_overtake_each_other_arrive_in_order() {
    let world = World::new().await;
    let mut publisher = live_stream(&world, GOP).await;
    let mut viewer = Viewer::join(&world, "pixel", &world.token("pixel", "ann")).await;
    viewer.frame().await;
    let streams: Vec<_> = (1..7)
        .map(|number| publisher.frame_bytes(1, &frame(number, GOP), number * TICKS))
        .collect();
    // The others are sent only when the first of them has been taken: an opened stream whose
    // first half is there keeps its turn.
    let mut first = publisher.conn.open_uni().await.unwrap();
    let (head, tail) = streams[0].split_at(streams[0].len() / 2);
    first.write_all(head).await.unwrap();
    for bytes in streams[1..].iter().rev() {
        publisher.send_raw(bytes).await;
    }
    first.write_all(tail).await.unwrap();
    first.finish().unwrap();
    for number in 1..7 {
        let (au, _, gap) = viewer.frame().await;
        assert_eq!(nals(&au), nals(&frame(number, GOP)), "frame {number}");
        assert!(!gap);
    }
    world.end().await;
}

#[tokio::test]
async fn a_touch_reaches_the_device_and_the_device_answers() {
    let world = World::new().await;
    let mut publisher = live_stream(&world, GOP).await;
    let mut viewer = Viewer::join(&world, "pixel", &world.token("pixel", "ann")).await;
    viewer.until(&Seen::ChannelOpen("input".into())).await;
    let session = DeviceMessage::decode(&viewer.message().await).unwrap();
    assert!(matches!(session.body, DeviceBody::Session { .. }), "{session:?}");

    let touch = touch(1, TouchAction::Down);
    viewer.send(touch.clone());
    let from = match publisher.next().await {
        Body::DeviceInput(input) => {
            assert_eq!((input.slot, &input.message), (1, &touch));
            input.viewer
        }
        other => panic!("{other:?}"),
    };

    let mut clipboard = Vec::new();
    let body = DeviceBody::Clipboard("hello".into());
    DeviceMessage { seq: 0, lease_epoch: 0, body }.encode(&mut clipboard).unwrap();
    let output = fanlight_proto::node::v1::DeviceOutput { slot: 1, message: clipboard.clone() };
    publisher.tell(Body::DeviceOutput(output)).await;
    assert_eq!(viewer.message().await, clipboard);

    // The finger is down when the viewer goes away: the device is told to release it.
    viewer.close().await;
    match publisher.next().await {
        Body::DeviceInput(input) => {
            assert_eq!(input.viewer, from);
            let message = InputMessage::decode(&input.message).unwrap();
            assert_eq!(message.body, InputBody::ReleaseAll);
        }
        other => panic!("{other:?}"),
    }
    world.end().await;
}

fn touch(seq: u32, action: TouchAction) -> Vec<u8> {
    let body = InputBody::Touch(Touch {
        action,
        pointer_id: 0,
        pressure: 65_535,
        x: 100,
        y: 200,
        w: 720,
        h: 1_280,
        buttons: 0,
    });
    let mut bytes = Vec::new();
    InputMessage { seq, lease_epoch: 0, body }.encode(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn an_end_under_live_viewers_closes_them_properly() {
    let world = World::new().await;
    let mut publisher = live_stream(&world, GOP).await;
    let mut viewer = Viewer::join(&world, "pixel", &world.token("pixel", "ann")).await;
    viewer.until(&Seen::Connected).await;
    let told = tokio::spawn(async move { (publisher.next().await, publisher.closed().await.0) });
    world.end().await;
    viewer.until(&Seen::Closed).await;
    let (last_words, code) = told.await.unwrap();
    assert!(matches!(last_words, Body::GoAway(_)), "{last_words:?}");
    assert_eq!(code, 0x1003);
}

#[tokio::test]
async fn everything_works_with_no_control_api_in_reach() {
    // Nothing listens there: the link is tried for ever, and nobody notices.
    let endpoint = "https://127.0.0.1:1".to_owned();
    let world = World::with(|cfg| cfg.control_endpoints = vec![endpoint]).await;
    let mut publisher = live_stream(&world, GOP).await;
    let mut viewer = Viewer::join(&world, "pixel", &world.token("pixel", "ann")).await;
    assert_eq!(nals(&viewer.frame().await.0), nals(&frame(0, GOP)));
    publisher.send_frame(1, &frame(1, GOP), TICKS).await;
    assert_eq!(nals(&viewer.frame().await.0), nals(&frame(1, GOP)));
    assert!(!world.router.link().unwrap().is_linked());
    world.end().await;
}

#[tokio::test]
async fn viewers_on_different_shards_see_the_same() {
    let world = World::with(|cfg| cfg.shards = 3).await;
    let mut publisher = live_stream(&world, GOP).await;
    let mut viewers = Vec::new();
    for name in ["a", "b", "c", "d"] {
        viewers.push(Viewer::join(&world, "pixel", &world.token("pixel", name)).await);
    }
    for number in 0..40 {
        if number > 0 {
            publisher.send_frame(1, &frame(number, GOP), number * TICKS).await;
        }
        for viewer in &mut viewers {
            assert_eq!(nals(&viewer.frame().await.0), nals(&frame(number, GOP)));
        }
    }
    world.end().await;
}

#[tokio::test]
async fn a_configuration_with_mistakes_starts_nothing_and_names_them_all() {
    let shutdown = fanlight_ops::shutdown::Shutdown::new(std::time::Duration::from_secs(1));
    let ca = fanlight_ops::pki::Ca::generate().unwrap();
    let identity = common::node_identity(&ca, "someone");
    let cfg = fanlight_router::RouterConfig { node: "r1".into(), shards: 0, ..Default::default() };
    let readiness = fanlight_ops::admin::Readiness::new();
    let error = fanlight_router::Router::start_with(cfg, identity, readiness, &shutdown).await;
    let text = error.unwrap_err().to_string();
    assert!(text.contains("shards") && text.contains("someone"), "{text}");
    assert!(shutdown.running_tasks().is_empty());
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_line_and_leaves_nothing_running() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let shutdown = fanlight_ops::shutdown::Shutdown::new(std::time::Duration::from_secs(1));
    let ca = fanlight_ops::pki::Ca::generate().unwrap();
    let identity = common::node_identity(&ca, "r1");
    let cfg = fanlight_router::RouterConfig {
        node: "r1".into(),
        quic_listen: taken.local_addr().unwrap(),
        ..Default::default()
    };
    let readiness = fanlight_ops::admin::Readiness::new();
    let error = fanlight_router::Router::start_with(cfg, identity, readiness, &shutdown).await;
    let text = error.unwrap_err().to_string();
    assert!(text.contains(&port.to_string()) && text.contains("ingest"), "{text}");
    assert!(shutdown.running_tasks().is_empty());
}
