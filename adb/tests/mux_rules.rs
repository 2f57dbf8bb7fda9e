//! Single rules of the multiplexer, packet by packet, as adbd documents them.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use fanlight_adb::{
    Counters, ProtocolError, StreamFailure,
    mux::{End, Event, Mux, MuxConfig, OpenError, Status, StreamId},
    packet::{Command, Packet},
};

fn mux(delayed_ack: bool) -> Mux {
    let config = MuxConfig { delayed_ack, recv_window: 8000, ..MuxConfig::default() };
    Mux::new(config, Arc::new(Counters::default()))
}

fn packet(command: Command, arg0: u32, arg1: u32, payload: &[u8]) -> Packet {
    Packet::new(command, arg0, arg1, payload.to_vec())
}

fn next(mux: &mut Mux) -> (Command, u32, u32, Vec<u8>) {
    let packet = mux.poll_packet().expect("a packet is due");
    (packet.command, packet.arg0, packet.arg1, packet.payload.to_vec())
}

fn incoming(mux: &mut Mux) -> StreamId {
    match mux.poll_event() {
        Some(Event::Incoming { id, .. }) => id,
        other => panic!("expected an incoming stream, got {other:?}"),
    }
}

/// A stream opened by us and answered by the peer as its stream 70.
fn opened(mux: &mut Mux, window: i32) -> StreamId {
    let id = mux.open("test:").unwrap();
    assert_eq!(next(mux).0, Command::Open);
    mux.on_packet(packet(Command::Okay, 70, id.get(), &window.to_le_bytes())).unwrap();
    assert_eq!(mux.poll_event(), Some(Event::Opened(id)));
    assert!(mux.poll_packet().is_none());
    id
}

#[test]
fn a_window_in_open_must_be_there_exactly_when_agreed() {
    for (delayed_ack, window, accepted) in
        [(true, 4096, true), (true, 0, false), (false, 0, true), (false, 4096, false)]
    {
        let mut mux = mux(delayed_ack);
        mux.on_packet(packet(Command::Open, 5, window, b"shell:\0")).unwrap();
        if accepted {
            assert!(
                matches!(mux.poll_event(), Some(Event::Incoming { service, .. }) if service == "shell:")
            );
        } else {
            assert_eq!(mux.poll_event(), None);
            assert_eq!(next(&mut mux), (Command::Clse, 0, 5, vec![]));
        }
    }
}

#[test]
fn the_answer_to_open_carries_our_window() {
    let mut mux = mux(true);
    mux.on_packet(packet(Command::Open, 5, 4096, b"shell:\0")).unwrap();
    let id = incoming(&mut mux);
    assert!(mux.accept(id));
    assert_eq!(next(&mut mux), (Command::Okay, id.get(), 5, 8000i32.to_le_bytes().to_vec()));
}

#[test]
fn a_sender_stops_at_its_window_and_goes_on_by_the_delta() {
    let mut mux = mux(true);
    let id = opened(&mut mux, 100);
    assert_eq!(mux.write(id, &[1; 150]), Ok(150));
    // One packet may go over.
    assert_eq!(next(&mut mux).3.len(), 150);
    mux.write(id, &[2; 10]).unwrap();
    assert!(mux.poll_packet().is_none(), "balance is -50");
    mux.on_packet(packet(Command::Okay, 70, id.get(), &50i32.to_le_bytes())).unwrap();
    assert!(mux.poll_packet().is_none(), "balance is 0");
    mux.on_packet(packet(Command::Okay, 70, id.get(), &1i32.to_le_bytes())).unwrap();
    assert_eq!(next(&mut mux).3, [2; 10]);
}

#[test]
fn a_delta_may_be_negative() {
    let mut mux = mux(true);
    let id = opened(&mut mux, 100);
    mux.on_packet(packet(Command::Okay, 70, id.get(), &(-100i32).to_le_bytes())).unwrap();
    mux.write(id, &[1; 10]).unwrap();
    assert!(mux.poll_packet().is_none());
    mux.on_packet(packet(Command::Okay, 70, id.get(), &5i32.to_le_bytes())).unwrap();
    assert_eq!(next(&mut mux).0, Command::Wrte);
}

#[test]
fn read_bytes_are_reported_as_deltas() {
    let mut mux = mux(true);
    let id = opened(&mut mux, 100);
    mux.on_packet(packet(Command::Wrte, 70, id.get(), &[9; 3000])).unwrap();
    assert!(mux.poll_packet().is_none(), "nothing read, nothing reported");
    mux.consume(id, 500);
    assert!(mux.poll_packet().is_none(), "less than an eighth of the window");
    mux.consume(id, 2500);
    assert_eq!(next(&mut mux), (Command::Okay, id.get(), 70, 3000i32.to_le_bytes().to_vec()));
}

#[test]
fn without_delayed_acks_one_packet_is_in_flight() {
    let mut mux = mux(false);
    let id = opened(&mut mux, 0);
    mux.write(id, b"one").unwrap();
    assert_eq!(next(&mut mux).3, b"one");
    mux.write(id, b"two").unwrap();
    mux.write(id, b"three").unwrap();
    assert!(mux.poll_packet().is_none());
    mux.on_packet(packet(Command::Okay, 70, id.get(), &[])).unwrap();
    assert_eq!(next(&mut mux).3, b"twothree", "what waited goes together");
    assert!(mux.poll_packet().is_none());
}

#[test]
fn without_delayed_acks_a_slow_reader_holds_the_okay_back() {
    let mut mux = mux(false);
    let id = opened(&mut mux, 0);
    mux.on_packet(packet(Command::Wrte, 70, id.get(), &[1; 5000])).unwrap();
    assert_eq!(next(&mut mux), (Command::Okay, id.get(), 70, vec![]));
    mux.on_packet(packet(Command::Wrte, 70, id.get(), &[1; 5000])).unwrap();
    assert!(mux.poll_packet().is_none(), "more than the window is unread");
    mux.consume(id, 1000);
    assert!(mux.poll_packet().is_none());
    mux.consume(id, 1000);
    assert_eq!(next(&mut mux).0, Command::Okay);
}

#[test]
fn an_acknowledgement_of_the_wrong_form_closes_the_stream_alone() {
    for (delayed_ack, payload) in [(true, &[][..]), (true, &[1, 2]), (false, &[1, 2, 3])] {
        let mut mux = mux(delayed_ack);
        let id = opened(&mut mux, 100);
        mux.on_packet(packet(Command::Okay, 70, id.get(), payload)).unwrap();
        let failed = End::Failed(StreamFailure::BadAcknowledgement);
        assert_eq!(mux.status(id), Status::Over(failed));
        assert_eq!(mux.write(id, b"x"), Err(failed));
        assert_eq!(next(&mut mux), (Command::Clse, id.get(), 70, vec![]));
        mux.release(id);
        assert_eq!(mux.streams(), 0);
    }
}

#[test]
fn a_peer_that_ignores_its_window_loses_the_stream() {
    let mut mux = mux(true);
    let id = opened(&mut mux, 100);
    let mib = vec![0; 1024 * 1024];
    mux.on_packet(packet(Command::Wrte, 70, id.get(), &mib)).unwrap();
    assert_eq!(mux.status(id), Status::Open, "going over by one packet is allowed");
    mux.on_packet(packet(Command::Wrte, 70, id.get(), &mib)).unwrap();
    assert_eq!(mux.status(id), Status::Over(End::Failed(StreamFailure::WindowOverrun)));
    assert_eq!(mux.buffered(), (0, 0));
    assert_eq!(next(&mut mux).0, Command::Clse);
}

#[test]
fn closing_sends_what_was_written_first() {
    let mut mux = mux(false);
    let id = opened(&mut mux, 0);
    mux.write(id, b"one").unwrap();
    mux.close(id);
    assert_eq!(mux.write(id, b"late"), Err(End::Orderly));
    assert_eq!(next(&mut mux).3, b"one");
    assert_eq!(next(&mut mux), (Command::Clse, id.get(), 70, vec![]));
    assert_eq!(mux.status(id), Status::Over(End::Orderly));
}

#[test]
fn a_close_may_name_0_instead_of_the_peers_id_but_no_other() {
    let mut mux = mux(false);
    let id = opened(&mut mux, 0);
    mux.on_packet(packet(Command::Clse, 71, id.get(), &[])).unwrap();
    assert_eq!(mux.status(id), Status::Open, "somebody else's stream");
    mux.on_packet(packet(Command::Wrte, 70, id.get(), b"last words")).unwrap();
    mux.on_packet(packet(Command::Clse, 0, id.get(), &[])).unwrap();
    assert_eq!(mux.status(id), Status::Over(End::Orderly));
    assert_eq!(mux.peek(id), b"last words");
}

#[test]
fn a_stream_let_go_before_its_answer_is_closed_when_the_answer_comes() {
    let mut mux = mux(false);
    let id = mux.open("slow:").unwrap();
    assert_eq!(next(&mut mux).0, Command::Open);
    mux.release(id);
    assert_eq!(mux.streams(), 1);
    mux.on_packet(packet(Command::Okay, 70, id.get(), &[])).unwrap();
    assert_eq!(next(&mut mux), (Command::Clse, id.get(), 70, vec![]));
    assert_eq!(mux.streams(), 0);
    // And one that was never sent leaves no trace.
    let id = mux.open("never:").unwrap();
    mux.release(id);
    assert!(mux.poll_packet().is_none());
    assert_eq!(mux.streams(), 0);
}

#[test]
fn a_refusal_is_told_apart_from_a_close() {
    let mut mux = mux(false);
    let id = mux.open("nobody:").unwrap();
    next(&mut mux);
    mux.on_packet(packet(Command::Clse, 0, id.get(), &[])).unwrap();
    assert_eq!(mux.poll_event(), Some(Event::Refused(id)));
    assert_eq!(mux.status(id), Status::Over(End::Refused));
}

#[test]
fn limits_on_streams_and_names_hold() {
    let mut mux = mux(false);
    assert!(matches!(mux.open(""), Err(OpenError::BadName(_))));
    assert!(matches!(mux.open("a\0b"), Err(OpenError::BadName(_))));
    assert!(matches!(mux.open(&"x".repeat(1024 * 1024)), Err(OpenError::BadName(_))));
    for _ in 0..256 {
        mux.open("test:").unwrap();
    }
    assert_eq!(mux.open("test:"), Err(OpenError::TooMany(256)));
    while mux.poll_packet().is_some() {}
    mux.on_packet(packet(Command::Open, 5, 0, b"test:\0")).unwrap();
    assert_eq!(next(&mut mux), (Command::Clse, 0, 5, vec![]));
}

#[test]
fn a_flood_of_refused_opens_costs_the_connection() {
    let mut mux = mux(false);
    let flood = (1..=10_000).find_map(|remote| {
        let open = packet(Command::Open, remote, 0, b"\xff\0");
        mux.on_packet(open).err().map(|error| (remote, error))
    });
    assert_eq!(flood, Some((1025, ProtocolError::OpenFlood)));
}

#[test]
fn handshake_packets_and_zero_ids_are_violations() {
    for command in [Command::Cnxn, Command::Auth, Command::Stls] {
        let error = mux(false).on_packet(packet(command, 1, 1, &[])).unwrap_err();
        assert!(matches!(error, ProtocolError::Unexpected { .. }));
    }
    for (command, arg0, arg1) in [
        (Command::Open, 0, 0),
        (Command::Okay, 0, 1),
        (Command::Okay, 1, 0),
        (Command::Wrte, 0, 1),
        (Command::Wrte, 1, 0),
        (Command::Clse, 1, 0),
    ] {
        let error = mux(false).on_packet(packet(command, arg0, arg1, b"x\0")).unwrap_err();
        assert!(matches!(error, ProtocolError::ZeroId { .. }), "{command:?}");
    }
}

#[test]
fn streams_take_turns() {
    let config = MuxConfig { delayed_ack: true, max_payload: 256 * 1024, ..MuxConfig::default() };
    let mut mux = Mux::new(config, Arc::new(Counters::default()));
    let ids: Vec<StreamId> = (0..3).map(|_| opened(&mut mux, 1 << 30)).collect();
    for id in &ids {
        while mux.write(*id, &vec![1; 256 * 1024]).unwrap() > 0 {}
    }
    let order: Vec<u32> = std::iter::from_fn(|| mux.poll_packet()).map(|p| p.arg0).collect();
    let ids: Vec<u32> = ids.iter().map(|id| id.get()).collect();
    assert_eq!(order, ids.repeat(4));
}

#[test]
fn a_stream_let_go_with_unsent_bytes_still_takes_in_what_comes() {
    // Else two ends that both let go with full buffers would wait for each other for ever.
    let mut delayed = mux(true);
    let id = opened(&mut delayed, 1);
    while delayed.write(id, &[1; 100_000]).unwrap() > 0 {}
    while delayed.poll_packet().is_some() {}
    delayed.release(id);
    delayed.on_packet(packet(Command::Wrte, 70, id.get(), &[1; 8000])).unwrap();
    let expected = (Command::Okay, id.get(), 70, 8000i32.to_le_bytes().to_vec());
    assert_eq!(next(&mut delayed), expected);
    assert_eq!(delayed.buffered().0, 0);

    let mut stop_and_wait = mux(false);
    let id = opened(&mut stop_and_wait, 0);
    stop_and_wait.write(id, b"one").unwrap();
    next(&mut stop_and_wait);
    stop_and_wait.write(id, b"two").unwrap();
    stop_and_wait.release(id);
    for _ in 0..10 {
        stop_and_wait.on_packet(packet(Command::Wrte, 70, id.get(), &[1; 8000])).unwrap();
        assert_eq!(next(&mut stop_and_wait), (Command::Okay, id.get(), 70, vec![]));
    }
}

#[test]
fn letting_go_after_closing_still_reports_what_was_unread() {
    let mut mux = mux(true);
    let id = opened(&mut mux, 1);
    while mux.write(id, &[1; 100_000]).unwrap() > 0 {}
    while mux.poll_packet().is_some() {}
    mux.on_packet(packet(Command::Wrte, 70, id.get(), &[1; 8000])).unwrap();
    mux.close(id);
    assert!(mux.poll_packet().is_none(), "both ends wait for the other to read");
    mux.release(id);
    let expected = (Command::Okay, id.get(), 70, 8000i32.to_le_bytes().to_vec());
    assert_eq!(next(&mut mux), expected);
}

#[test]
fn streams_that_come_and_go_unpolled_leave_no_queue_behind() {
    // A peer that opens, is accepted and closes, over and over, and never reads its socket.
    let mut mux = mux(false);
    for remote in 1..=10_000 {
        mux.on_packet(packet(Command::Open, remote, 0, b"test:\0")).unwrap();
        let id = incoming(&mut mux);
        assert!(mux.accept(id));
        mux.on_packet(packet(Command::Clse, remote, id.get(), &[])).unwrap();
        mux.release(id);
        while mux.poll_event().is_some() {}
        assert_eq!(mux.streams(), 0);
        assert!(!mux.has_output(), "nothing is owed to a stream that is gone");
    }
}
