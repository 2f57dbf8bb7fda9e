//! Promises about input: who may, what arrives, what is let go of.

use std::time::Duration;

use fanlight_wire::input::{
    DenyReason, DeviceBody, DeviceMessage, InputBody, Role as WireRole, Touch, TouchAction,
};

use crate::world::{STREAM, Source, World};
use crate::{DownReason, LeaveReason, Role, SessionId};

fn touch(action: TouchAction, x: u16) -> InputBody {
    InputBody::Touch(Touch {
        action,
        pointer_id: 0,
        pressure: 65_535,
        x,
        y: 7,
        w: 720,
        h: 1280,
        buttons: 0,
    })
}

fn denials(messages: &[DeviceMessage]) -> Vec<DenyReason> {
    messages
        .iter()
        .filter_map(|m| match m.body {
            DeviceBody::Denied { reason, .. } => Some(reason),
            _ => None,
        })
        .collect()
}

#[test]
fn observer_input_is_denied_and_controller_input_reaches_device() {
    let mut w = World::new();
    let observer = w.join_connected(Role::Observer);
    let controller = w.join_connected(Role::Controller);
    w.send_input(observer, touch(TouchAction::Down, 1));
    w.send_input(controller, touch(TouchAction::Down, 2));
    w.send_input(controller, touch(TouchAction::Up, 2));
    w.drive(Duration::from_millis(100));
    assert_eq!(denials(&w.clients[observer].messages), [DenyReason::NotController]);
    assert!(denials(&w.clients[controller].messages).is_empty());
    let got: Vec<_> = w.to_device.iter().map(|(s, m)| (*s, m.body.clone())).collect();
    let session = w.clients[controller].session;
    assert_eq!(got, [(session, touch(TouchAction::Down, 2)), (session, touch(TouchAction::Up, 2))]);
}

#[test]
fn the_session_is_told_when_the_channel_opens_and_when_the_role_changes() {
    let mut w = World::new();
    Source::new(1).play(&mut w, 1, true);
    let v = w.join_connected(Role::Observer);
    w.drive(Duration::from_millis(50));
    w.core.set_role(w.now, w.clients[v].session, Role::Controller);
    w.drain_core();
    w.drive(Duration::from_millis(50));
    let told: Vec<_> = w.clients[v].messages.iter().map(|m| m.body.clone()).collect();
    let session = |role| DeviceBody::Session { w: 720, h: 1280, rotation: 0, role };
    assert_eq!(told, [session(WireRole::Observer), session(WireRole::Controller)]);
    w.send_input(v, touch(TouchAction::Down, 2));
    w.drive(Duration::from_millis(50));
    assert_eq!(w.to_device.len(), 1);
    // Losing the role lets go of what is held.
    w.core.set_role(w.now, w.clients[v].session, Role::Observer);
    w.drain_core();
    assert_eq!(w.to_device.last().unwrap().1.body, InputBody::ReleaseAll);
}

#[test]
fn a_viewer_is_told_where_to_go_also_when_its_channel_opens_later() {
    let mut w = World::new();
    let there = "https://r2.example/whep/x?ticket=1.ab";
    let early = w.join(Role::Observer);
    w.core.reconnect(w.now, w.clients[early].session, there);
    w.drive(Duration::from_secs(1));
    let late = w.join_connected(Role::Observer);
    w.drive(Duration::from_millis(50));
    w.core.reconnect(w.now, w.clients[late].session, there);
    w.drain_core();
    w.drive(Duration::from_millis(50));
    for v in [early, late] {
        let told = w.clients[v].messages.iter();
        let told = told.filter(|m| m.body == DeviceBody::Reconnect(there.into())).count();
        assert_eq!(told, 1);
        assert!(!w.clients[v].dead, "it stays until it leaves by itself");
    }
    w.core.reconnect(w.now, SessionId(9_999), there);
}

#[test]
fn a_controller_that_leaves_lets_go_of_the_device() {
    for how in 0..3 {
        let mut w = World::new();
        let v = w.join_connected(Role::Controller);
        let idle = w.join_connected(Role::Controller);
        w.send_input(v, touch(TouchAction::Down, 2));
        w.drive(Duration::from_millis(50));
        for leaving in [v, idle] {
            match how {
                0 => w.core.leave(w.now, w.clients[leaving].session, LeaveReason::Kicked),
                1 => w.client_closes(leaving),
                _ => w.clients[leaving].dead = true,
            }
        }
        w.drain_core();
        w.drive(Duration::from_secs(40));
        let released: Vec<_> =
            w.to_device.iter().filter(|(_, m)| m.body == InputBody::ReleaseAll).collect();
        assert_eq!(released.len(), 1, "once, and only for the one who touched");
        assert_eq!(released[0].0, w.clients[v].session);
        assert_eq!(released[0].1.lease_epoch, 3);
    }
}

#[test]
fn malformed_and_offline_input_is_answered() {
    let mut w = World::new();
    let v = w.join_connected(Role::Controller);
    w.send_raw_input(v, &[0x77; 40]);
    w.drive(Duration::from_millis(50));
    w.core.stream_down(w.now, STREAM, DownReason::Offline);
    w.send_input(v, touch(TouchAction::Down, 2));
    w.drive(Duration::from_millis(50));
    let got = denials(&w.clients[v].messages);
    assert_eq!(got, [DenyReason::Malformed, DenyReason::DeviceOffline]);
    assert!(w.to_device.is_empty());
}

#[test]
fn an_input_flood_is_bounded_and_the_up_arrives() {
    let mut w = World::with(|c| {
        c.limits.input_rate = 100;
        c.limits.input_burst = 20;
    });
    let v = w.join_connected(Role::Controller);
    w.send_input(v, touch(TouchAction::Down, 0));
    for x in 0..600 {
        w.send_input(v, touch(TouchAction::Move, x));
        w.drive(Duration::from_millis(1));
    }
    w.send_input(v, touch(TouchAction::Up, 599));
    w.drive(Duration::from_millis(100));
    let count = w.to_device.len();
    assert!((60..100).contains(&count), "{count} messages in 0.6 s at 100/s and a burst of 20");
    assert_eq!(w.to_device[count - 2].1.body, touch(TouchAction::Move, 599), "the newest move");
    assert_eq!(w.to_device[count - 1].1.body, touch(TouchAction::Up, 599));
}

#[test]
fn device_output_goes_to_controllers_only() {
    let mut w = World::new();
    let observer = w.join_connected(Role::Observer);
    let controller = w.join_connected(Role::Controller);
    let mut bytes = Vec::new();
    let body = DeviceBody::Clipboard("copied".into());
    DeviceMessage { seq: 0, lease_epoch: 0, body: body.clone() }.encode(&mut bytes).unwrap();
    w.core.device_output(w.now, STREAM, &bytes);
    w.drain_core();
    w.drive(Duration::from_millis(100));
    let has = |v: usize| w.clients[v].messages.iter().any(|m| m.body == body);
    assert_eq!((has(controller), has(observer)), (true, false));
}

#[test]
fn a_ping_is_answered() {
    let mut w = World::new();
    let v = w.join_connected(Role::Observer);
    w.send_input(v, InputBody::Ping { t_ms: 4_711 });
    w.drive(Duration::from_millis(100));
    assert!(w.clients[v].messages.iter().any(|m| m.body == DeviceBody::Pong { t_ms: 4_711 }));
}
