//! The system calls that move many datagrams at once, and the socket options they need. The only
//! file of this package with `unsafe`: everything it offers is safe to call with any arguments.
//! Not a policy: what to send, when to fall back and what to count is decided by its callers.
//! Invariant: no pointer given to the kernel outlives the call that it was made for.
//!
//! JUSTIFICATION: `sendmmsg` with `UDP_SEGMENT` and `recvmmsg` with `UDP_GRO` divide the cost of a
//! datagram by two to three, and neither the standard library nor a kept crate offers them safely
//! for more than one destination per call.
#![allow(
    clippy::cast_possible_truncation,
    reason = "lengths and constants of the kernel's own structures, all far below 2^15"
)]

use std::{
    io,
    mem::{self, MaybeUninit},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr,
};

use libc::{c_int, c_uint, c_void, cmsghdr, iovec, mmsghdr, sockaddr_in, sockaddr_in6, socklen_t};

/// Most messages that one call sends; the rest is left for the next one.
pub(super) const SEND_MESSAGES_MAX: usize = 64;
/// Most messages that one call receives.
pub(super) const RECEIVE_MESSAGES_MAX: usize = 32;

/// One message to be sent: a datagram, or several that the kernel cuts apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// Where to; must be of the socket's family.
    pub(super) to: SocketAddr,
    /// The datagrams, one after the other.
    pub(super) bytes: &'a [u8],
    /// Size of each datagram but the last; `None` when there is only one.
    pub(super) segment: Option<u16>,
}

/// One message received: a datagram, or several of one sender and size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// The sender. `None` when the kernel named none of a known family.
    pub(super) from: Option<SocketAddr>,
    /// Bytes in the buffer.
    pub(super) len: usize,
    /// Size of each datagram but the last; zero when there is only one.
    pub(super) segment: usize,
    /// The buffer was too small and the rest is lost.
    pub(super) truncated: bool,
}

impl Received {
    pub(super) const NONE: Self = Self { from: None, len: 0, segment: 0, truncated: false };
}

/// An address in the kernel's form.
#[repr(C)]
#[derive(Clone, Copy)]
union Name {
    v4: sockaddr_in,
    v6: sockaddr_in6,
}

/// Room for one control message of at most four bytes, aligned as the kernel wants it.
type Control = [u64; 4];

const SEGMENT_BYTES: c_uint = size_of::<u16>() as c_uint;
const GRO_BYTES: c_uint = size_of::<c_int>() as c_uint;
const NAME_BYTES: socklen_t = size_of::<Name>() as socklen_t;

// SAFETY: both only compute lengths from their argument.
const _: () = assert!(unsafe { libc::CMSG_SPACE(GRO_BYTES) } as usize <= size_of::<Control>());
// SAFETY: as above.
const SEGMENT_SPACE: usize = unsafe { libc::CMSG_SPACE(SEGMENT_BYTES) } as usize;

/// Sends at most [`SEND_MESSAGES_MAX`] of `messages` in one call without waiting. Gives how many
/// the kernel took, at least one; an error is about the first message, which it did not take.
/// Allocates nothing.
pub(super) fn send_messages<'a>(
    socket: BorrowedFd<'_>,
    messages: impl Iterator<Item = Message<'a>>,
) -> io::Result<usize> {
    let mut headers = [const { MaybeUninit::<mmsghdr>::uninit() }; SEND_MESSAGES_MAX];
    let mut pieces = [const { MaybeUninit::<iovec>::uninit() }; SEND_MESSAGES_MAX];
    let mut names = [const { MaybeUninit::<Name>::uninit() }; SEND_MESSAGES_MAX];
    let mut controls = [const { MaybeUninit::<Control>::uninit() }; SEND_MESSAGES_MAX];
    let mut count = 0;
    let slots = headers.iter_mut().zip(&mut pieces).zip(&mut names).zip(&mut controls);
    for ((((header, piece), name), control), message) in slots.zip(messages) {
        let (name, name_len) = write_name(name, message.to);
        let piece = piece.write(iovec {
            // The kernel only reads from it when sending.
            iov_base: message.bytes.as_ptr().cast_mut().cast::<c_void>(),
            iov_len: message.bytes.len(),
        });
        // SAFETY: an mmsghdr of zero bytes is valid: null pointers and zero lengths.
        let header = header.write(unsafe { mem::zeroed() });
        header.msg_hdr.msg_name = ptr::from_mut(name).cast();
        header.msg_hdr.msg_namelen = name_len;
        header.msg_hdr.msg_iov = piece;
        header.msg_hdr.msg_iovlen = 1;
        if let Some(segment) = message.segment {
            header.msg_hdr.msg_control = control.write([0; 4]).as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = SEGMENT_SPACE as _;
            // SAFETY: the header has just been given a control buffer of SEGMENT_SPACE bytes.
            unsafe { write_segment(&header.msg_hdr, segment) };
        }
        count += 1;
    }
    if count == 0 {
        return Ok(0);
    }
    // SAFETY: the first `count` headers were written above. What they point to (names, pieces,
    // controls on this stack, and bytes borrowed for 'a, which outlives this call) stays in place
    // until the call returns, and the kernel keeps none of it: no MSG_ZEROCOPY.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast::<mmsghdr>(),
            count,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Whether the kernel has `sendmmsg`: an empty call does nothing.
pub(super) fn has_sendmmsg(socket: BorrowedFd<'_>) -> bool {
    // SAFETY: no message is read from the null pointer, because their number is zero.
    unsafe { libc::sendmmsg(socket.as_raw_fd(), ptr::null_mut(), 0, libc::MSG_DONTWAIT) == 0 }
}

/// Whether the kernel has `recvmmsg`.
pub(super) fn has_recvmmsg(socket: BorrowedFd<'_>) -> bool {
    let flags = libc::MSG_DONTWAIT as _;
    // SAFETY: no message is written to the null pointer, because their number is zero, and a
    // missing time limit is allowed.
    unsafe { libc::recvmmsg(socket.as_raw_fd(), ptr::null_mut(), 0, flags, ptr::null_mut()) == 0 }
}

/// Receives at most [`RECEIVE_MESSAGES_MAX`] messages, one per `stride` bytes of `buffer` and one
/// per entry of `out`, without waiting. Gives how many entries were written.
pub(super) fn receive_messages(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    stride: usize,
    out: &mut [Received],
) -> io::Result<usize> {
    let mut headers = [const { MaybeUninit::<mmsghdr>::uninit() }; RECEIVE_MESSAGES_MAX];
    let mut pieces = [const { MaybeUninit::<iovec>::uninit() }; RECEIVE_MESSAGES_MAX];
    let mut names = [const { MaybeUninit::<Name>::uninit() }; RECEIVE_MESSAGES_MAX];
    let mut controls = [[0u64; 4]; RECEIVE_MESSAGES_MAX];
    let mut count: c_uint = 0;
    let slots = headers.iter_mut().zip(&mut pieces).zip(&mut names).zip(&mut controls);
    let room = out.len();
    for ((((header, piece), name), control), bytes) in
        slots.zip(buffer.chunks_exact_mut(stride.max(1))).take(room)
    {
        let piece = piece.write(iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: stride });
        // SAFETY: an address of zero bytes is valid: family zero, which is none.
        let name = name.write(unsafe { mem::zeroed() });
        // SAFETY: an mmsghdr of zero bytes is valid: null pointers and zero lengths.
        let header = header.write(unsafe { mem::zeroed() });
        header.msg_hdr.msg_name = ptr::from_mut(name).cast();
        header.msg_hdr.msg_namelen = NAME_BYTES;
        header.msg_hdr.msg_iov = piece;
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_control = control.as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = size_of::<Control>() as _;
        count += 1;
    }
    // SAFETY: the first `count` headers were written above; names and controls are on this stack,
    // the pieces are disjoint parts of `buffer`, which is borrowed mutably for the whole call.
    let got = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast::<mmsghdr>(),
            count,
            libc::MSG_DONTWAIT as _,
            ptr::null_mut(),
        )
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    for ((out, header), name) in out.iter_mut().zip(&headers).zip(&names).take(got) {
        // SAFETY: the kernel returns at most `count`, and that many were written above.
        let (header, name) = unsafe { (header.assume_init_ref(), name.assume_init_ref()) };
        *out = Received {
            from: read_name(name, header.msg_hdr.msg_namelen),
            len: (header.msg_len as usize).min(stride),
            // SAFETY: the kernel wrote the length of what it put into this header's control
            // buffer, which still lives.
            segment: unsafe { read_segment(&header.msg_hdr) },
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        };
    }
    Ok(got)
}

/// Lets the kernel hand over several datagrams of one sender as one message.
pub(super) fn enable_gro(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Whether the kernel cuts messages apart: it then knows the option.
pub(super) fn has_gso(socket: BorrowedFd<'_>) -> bool {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as socklen_t;
    // SAFETY: `value` and `len` are valid for writing, and `len` says how much room there is.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            ptr::from_mut(&mut value).cast(),
            &mut len,
        )
    };
    result == 0
}

/// Asks for a receive and a send buffer beyond what the system allows everyone; needs
/// CAP_NET_ADMIN.
pub(super) fn force_buffers(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)
}

/// Sets an option whose value is an integer.
fn set_option(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads the four bytes of `value`, which live through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            ptr::from_ref(&value).cast(),
            size_of::<c_int>() as socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn write_name(slot: &mut MaybeUninit<Name>, address: SocketAddr) -> (&mut Name, socklen_t) {
    match address {
        SocketAddr::V4(a) => {
            // SAFETY: a sockaddr_in of zero bytes is valid.
            let mut raw: sockaddr_in = unsafe { mem::zeroed() };
            raw.sin_family = libc::AF_INET as _;
            raw.sin_port = a.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(a.ip().octets());
            (slot.write(Name { v4: raw }), size_of::<sockaddr_in>() as socklen_t)
        }
        SocketAddr::V6(a) => {
            // SAFETY: a sockaddr_in6 of zero bytes is valid.
            let mut raw: sockaddr_in6 = unsafe { mem::zeroed() };
            raw.sin6_family = libc::AF_INET6 as _;
            raw.sin6_port = a.port().to_be();
            raw.sin6_flowinfo = a.flowinfo();
            raw.sin6_addr.s6_addr = a.ip().octets();
            raw.sin6_scope_id = a.scope_id();
            (slot.write(Name { v6: raw }), size_of::<sockaddr_in6>() as socklen_t)
        }
    }
}

fn read_name(name: &Name, len: socklen_t) -> Option<SocketAddr> {
    // SAFETY: all of the union was zeroed before the kernel wrote, every bit pattern is a valid
    // value of both forms, and the family stands in the same place in both.
    let (v4, v6) = unsafe { (&name.v4, &name.v6) };
    match c_int::from(v4.sin_family) {
        libc::AF_INET if len as usize >= size_of::<sockaddr_in>() => {
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 if len as usize >= size_of::<sockaddr_in6>() => {
            let (ip, port) = (Ipv6Addr::from(v6.sin6_addr.s6_addr), u16::from_be(v6.sin6_port));
            Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// Writes the control message that says where to cut.
///
/// # Safety
/// `msg_control` must point at a [`Control`] of which `msg_controllen` bytes, at least
/// [`SEGMENT_SPACE`], may be written.
unsafe fn write_segment(header: &libc::msghdr, segment: u16) {
    // SAFETY: a `Control` is aligned for a cmsghdr and long enough, by the caller's word, so that
    // the first header and its two bytes of data lie within it.
    unsafe {
        let control: *mut cmsghdr = libc::CMSG_FIRSTHDR(header);
        (*control).cmsg_level = libc::SOL_UDP;
        (*control).cmsg_type = libc::UDP_SEGMENT;
        (*control).cmsg_len = libc::CMSG_LEN(SEGMENT_BYTES) as _;
        ptr::write_unaligned(libc::CMSG_DATA(control).cast::<u16>(), segment);
    }
}

/// The size of the datagrams in a received message; zero when the kernel did not say.
///
/// # Safety
/// `msg_control` must point at a [`Control`], of which the kernel has filled `msg_controllen`.
unsafe fn read_segment(header: &libc::msghdr) -> usize {
    // SAFETY: the macros stay within `msg_controllen`, which lies within a `Control` by the
    // caller's word; the length is checked before the int is read.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while let Some(c) = control.as_ref() {
            let is_whole = c.cmsg_len >= libc::CMSG_LEN(GRO_BYTES) as _;
            if c.cmsg_level == libc::SOL_UDP && c.cmsg_type == libc::UDP_GRO && is_whole {
                let size = ptr::read_unaligned(libc::CMSG_DATA(control).cast::<c_int>());
                return usize::try_from(size).unwrap_or(0);
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    0
}
