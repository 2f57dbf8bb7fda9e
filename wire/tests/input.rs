//! Input messages: encode and decode are inverses over all messages and all cuts, and the drop and
//! coalesce predicates. Not the bytes themselves: those are in `golden.rs`.
#![allow(clippy::unwrap_used, reason = "tests")]

use fanlight_wire::input::{
    Button, ButtonAction, CLIPBOARD_MAX, CopyKey, DenyReason, DeviceBody, DeviceMessage, InputBody,
    InputError, InputMessage, Key, KeyAction, MESSAGE_MAX, Role, Scroll, TEXT_MAX, Touch,
    TouchAction,
};
use proptest::prelude::*;
use proptest::sample::select;

fn touch() -> impl Strategy<Value = Touch> {
    let place = (1..=u16::MAX, 1..=u16::MAX, any::<u16>(), any::<u16>());
    (select(TouchAction::ALL), any::<u8>(), any::<u16>(), place, any::<u32>()).prop_map(
        |(action, pointer_id, pressure, (w, h, x, y), buttons)| Touch {
            action,
            pointer_id,
            pressure,
            x: x % w,
            y: y % h,
            w,
            h,
            buttons,
        },
    )
}

fn body() -> impl Strategy<Value = InputBody> {
    let key = (select(KeyAction::ALL), any::<(u16, u32, u32)>());
    prop_oneof![
        touch().prop_map(InputBody::Touch),
        key.prop_map(|(action, (repeat, keycode, meta))| {
            InputBody::Key(Key { action, repeat, keycode, meta })
        }),
        (touch(), any::<(i16, i16)>()).prop_map(|(t, (dx, dy))| {
            InputBody::Scroll(Scroll { x: t.x, y: t.y, w: t.w, h: t.h, dx, dy, buttons: t.buttons })
        }),
        "\\PC{0,200}".prop_map(InputBody::Text),
        (any::<bool>(), "\\PC{0,2000}")
            .prop_map(|(paste, text)| InputBody::SetClipboard { paste, text }),
        select(CopyKey::ALL).prop_map(|copy_key| InputBody::GetClipboard { copy_key }),
        (select(Button::ALL), select(ButtonAction::ALL))
            .prop_map(|(button, action)| InputBody::Button { button, action }),
        Just(InputBody::ReleaseAll),
        any::<u32>().prop_map(|t_ms| InputBody::Ping { t_ms }),
    ]
}

fn device_body() -> impl Strategy<Value = DeviceBody> {
    prop_oneof![
        (any::<(u16, u16)>(), 0u8..4, select(Role::ALL))
            .prop_map(|((w, h), rotation, role)| DeviceBody::Session { w, h, rotation, role }),
        "\\PC{0,2000}".prop_map(DeviceBody::Clipboard),
        (select(DenyReason::ALL), any::<u8>())
            .prop_map(|(reason, of_kind)| DeviceBody::Denied { reason, of_kind }),
        any::<u32>().prop_map(|t_ms| DeviceBody::Pong { t_ms }),
    ]
}

proptest! {
    #[test]
    fn decode_is_the_inverse_of_encode(seq: u32, lease_epoch: u32, body in body()) {
        let message = InputMessage { seq, lease_epoch, body };
        let mut bytes = Vec::new();
        message.encode(&mut bytes).unwrap();
        prop_assert_eq!(bytes[0], message.body.kind());
        prop_assert_eq!(InputMessage::decode(&bytes), Ok(message));
        // Every cut and every extra byte is refused. Long texts: the first 64 cuts.
        for end in 0..bytes.len().min(64) {
            let refused = matches!(InputMessage::decode(&bytes[..end]), Err(InputError::Truncated { .. }));
            prop_assert!(refused, "cut at {}", end);
        }
        bytes.push(0);
        prop_assert_eq!(InputMessage::decode(&bytes), Err(InputError::Trailing { count: 1 }));
    }

    #[test]
    fn device_messages_too(seq: u32, lease_epoch: u32, body in device_body()) {
        let message = DeviceMessage { seq, lease_epoch, body };
        let mut bytes = Vec::new();
        message.encode(&mut bytes).unwrap();
        prop_assert_eq!(DeviceMessage::decode(&bytes), Ok(message));
        bytes.pop();
        prop_assert!(DeviceMessage::decode(&bytes).is_err());
    }

    #[test]
    fn what_decodes_encodes_to_the_same_bytes(
        kind in 0u8..12, rest in prop::collection::vec(prop_oneof![Just(0u8), 0u8..4, any::<u8>()], 0..40),
    ) {
        let mut bytes = vec![kind, 0, 0, 0];
        bytes.extend(rest);
        if let Ok(message) = InputMessage::decode(&bytes) {
            let mut again = Vec::new();
            message.encode(&mut again).unwrap();
            prop_assert_eq!(again, bytes);
        }
    }

    #[test]
    fn random_bytes_never_panic_in_input(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = InputMessage::decode(&bytes);
        let _ = DeviceMessage::decode(&bytes);
    }
}

fn message(body: InputBody) -> InputMessage {
    InputMessage { seq: 1, lease_epoch: 0, body }
}

#[test]
fn what_decode_would_refuse_encode_refuses_and_writes_nothing() {
    let mut out = vec![0xee];
    let text = message(InputBody::Text("x".repeat(TEXT_MAX + 1)));
    let too_long = InputError::TooLong { field: "text", len: TEXT_MAX + 1, max: TEXT_MAX };
    assert_eq!(text.encode(&mut out), Err(too_long));
    let text = "x".repeat(CLIPBOARD_MAX + 1);
    let clipboard = message(InputBody::SetClipboard { paste: true, text });
    assert!(matches!(clipboard.encode(&mut out), Err(InputError::TooLong { .. })));
    let touch = Touch {
        action: TouchAction::Down,
        pointer_id: 0,
        pressure: 1,
        x: 720,
        y: 0,
        w: 720,
        h: 1280,
        buttons: 0,
    };
    let outside = InputError::Outside { x: 720, y: 0, w: 720, h: 1280 };
    assert_eq!(message(InputBody::Touch(touch)).encode(&mut out), Err(outside));
    let body = DeviceBody::Session { w: 1, h: 1, rotation: 4, role: Role::Observer };
    let session = DeviceMessage { seq: 0, lease_epoch: 0, body };
    assert!(matches!(session.encode(&mut out), Err(InputError::BadValue { .. })));
    assert_eq!(out, [0xee]);
}

#[test]
fn the_greatest_message_is_as_long_as_it_says() {
    let text = "x".repeat(CLIPBOARD_MAX);
    let mut out = Vec::new();
    message(InputBody::SetClipboard { paste: true, text }).encode(&mut out).unwrap();
    assert_eq!(out.len(), MESSAGE_MAX);
    assert!(InputMessage::decode(&out).is_ok());
}

#[test]
fn only_moves_may_be_dropped_and_only_newer_moves_of_the_same_pointer_replace_them() {
    let touch = |action, pointer_id, w| Touch {
        action,
        pointer_id,
        pressure: 1,
        x: 0,
        y: 0,
        w,
        h: 9,
        buttons: 0,
    };
    let of = |t| message(InputBody::Touch(t));
    let (a, b) = (of(touch(TouchAction::Move, 0, 5)), of(touch(TouchAction::Move, 0, 5)));
    assert!(a.is_droppable());
    assert!(b.coalesces_with(&a));
    assert!(!of(touch(TouchAction::Move, 1, 5)).coalesces_with(&a), "another pointer");
    assert!(!of(touch(TouchAction::Move, 0, 6)).coalesces_with(&a), "another picture");
    assert!(!InputMessage { lease_epoch: 1, ..b }.coalesces_with(&a), "another lease");
    for action in [TouchAction::Down, TouchAction::Up, TouchAction::Cancel] {
        let other = of(touch(action, 0, 5));
        assert!(!other.is_droppable());
        assert!(!other.coalesces_with(&a) && !a.coalesces_with(&other));
    }
    assert!(!message(InputBody::ReleaseAll).is_droppable());
}

#[test]
fn notches_are_clamped_and_come_back() {
    assert_eq!(Scroll::from_notches(1.0), 2048);
    assert_eq!(Scroll::from_notches(-16.0), -32_767);
    assert_eq!(Scroll::from_notches(99.0), 32_767);
    assert_eq!(Scroll::from_notches(f32::NAN), 0);
    assert!((Scroll::to_notches(2048) - 1.0).abs() < 0.001);
}
