//! Sealing a packet does not allocate, and opening one does not once its buffer has grown. Counted
//! are this process's Rust allocations, not the C library's. One test alone in its process, since
//! the count is of the whole of it.
#![allow(unsafe_code, reason = "an allocator that counts")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use fanlight_rtc::srtp::{Contexts, Keying, Profile};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: all work is done by the system's allocator; the count is a plain thread-local without
// a destructor, so touching it does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn counted(run: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    run();
    COUNT.get() - before
}

#[test]
fn sealing_and_opening_do_not_allocate() {
    assert_eq!(counted(|| drop(vec![1u8; 100])), 1, "the count works");
    for profile in Profile::ALL {
        let keying = |active| Keying::new(profile, &vec![9; profile.material_len()], active);
        let mut us = Contexts::derive(&keying(false).unwrap()).unwrap();
        let mut peer = Contexts::derive(&keying(true).unwrap()).unwrap();
        let (payload, mut datagram) = ([5; 1_172], vec![0x80; 1_300]);
        let (mut report, mut sealed, mut clear) = ([0x80; 72], Vec::new(), Vec::new());
        report[4..8].copy_from_slice(&[0; 4]);
        let mut all = |index: u16| {
            datagram[2..4].copy_from_slice(&index.to_be_bytes());
            let len = us.rtp.seal(u64::from(index), 0x8080_8080, 12, &payload, &mut datagram);
            peer.rtp_in.open(&datagram[..len.unwrap()], &mut clear).unwrap();
            peer.rtcp.protect(&report, &mut sealed).unwrap();
            us.rtcp_in.open(&sealed, &mut clear).unwrap();
        };
        all(0);
        let counted = counted(|| (1..200).for_each(&mut all));
        assert_eq!(counted, 0, "{profile:?}");
    }
}
