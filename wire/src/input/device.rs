//! Messages towards viewers: session, clipboard, refusals, pongs. Not their routing. Invariant: as
//! in the other direction, encode and decode accept exactly the same messages.

use super::cursor::{self, Cursor};
use super::types::wire_enum;
use super::{InputError, cursor::bad, kind};

wire_enum! {
    /// What a viewer may do.
    Role ("role") {
        /// Look.
        Observer = 0,
        /// Look and touch.
        Controller = 1,
    }
}

wire_enum! {
    /// Why a message was not passed to the device.
    DenyReason ("deny reason") {
        /// The viewer is not the controller.
        NotController = 1,
        /// Too many messages; slow down.
        RateLimited = 2,
        /// The picture has another size by now.
        StaleSize = 3,
        /// The message could not be read.
        Malformed = 4,
        /// The device is not there.
        DeviceOffline = 5,
    }
}

/// Longest address of a [`DeviceBody::Reconnect`], in bytes.
pub const RECONNECT_URL_MAX: usize = 4_096;

/// One message towards a viewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceMessage {
    /// Of a refusal: the refused message's number. Of a pong: the ping's. Otherwise the sender's
    /// own count, or 0.
    pub seq: u32,
    /// Epoch of the control lease in force; 0 where none is in use.
    pub lease_epoch: u32,
    /// What it says.
    pub body: DeviceBody,
}

/// What a viewer is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceBody {
    /// Sent when the channel opens and whenever something in it changes.
    Session {
        /// Width of the picture; 0 while it is not known.
        w: u16,
        /// Height of the picture; 0 while it is not known.
        h: u16,
        /// Quarter turns counter-clockwise, 0 to 3.
        rotation: u8,
        /// What this viewer may do.
        role: Role,
    },
    /// The device's clipboard, at most [`CLIPBOARD_MAX`](super::CLIPBOARD_MAX) bytes.
    Clipboard(String),
    /// A message was not passed to the device.
    Denied {
        /// Why.
        reason: DenyReason,
        /// The refused message's first byte, or 0 if it had none.
        of_kind: u8,
    },
    /// The stream is live on another router: join it there, by this WHEP address, then leave here.
    /// From 1 to [`RECONNECT_URL_MAX`] bytes.
    Reconnect(String),
    /// Answer to a ping.
    Pong {
        /// What the ping carried.
        t_ms: u32,
    },
}

impl DeviceMessage {
    /// Reads one message, as strictly as in the other direction.
    pub fn decode(message: &[u8]) -> Result<Self, InputError> {
        let mut c = Cursor::new(message);
        let (kind, seq, lease_epoch) = c.header()?;
        let body = match kind {
            kind::SESSION => {
                let (w, h) = (c.u16("session width")?, c.u16("session height")?);
                let rotation = check_rotation(c.u8("rotation")?)?;
                let role = Role::from_wire(c.u8("role")?)?;
                c.zero("reserved bytes of session", 2)?;
                DeviceBody::Session { w, h, rotation, role }
            }
            kind::CLIPBOARD => DeviceBody::Clipboard(c.clipboard()?),
            kind::DENIED => {
                let reason = DenyReason::from_wire(c.u8("deny reason")?)?;
                let of_kind = c.u8("denied kind")?;
                c.zero("reserved bytes of denied", 2)?;
                DeviceBody::Denied { reason, of_kind }
            }
            kind::RECONNECT => {
                let len = usize::from(c.u16("url length")?);
                c.zero("reserved bytes of reconnect", 2)?;
                if len == 0 {
                    return Err(bad("url length", 0u32));
                }
                DeviceBody::Reconnect(c.text("url", len, RECONNECT_URL_MAX)?)
            }
            kind::PONG => DeviceBody::Pong { t_ms: c.u32("pong time")? },
            other => return Err(InputError::UnknownKind(other)),
        };
        c.end()?;
        Ok(Self { seq, lease_epoch, body })
    }

    /// Appends the message's bytes. Refuses what [`decode`](Self::decode) would refuse; then
    /// nothing is appended.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), InputError> {
        let start = out.len();
        let done = self.encode_body(out);
        if done.is_err() {
            out.truncate(start);
        }
        done
    }

    fn encode_body(&self, out: &mut Vec<u8>) -> Result<(), InputError> {
        let kind = match &self.body {
            DeviceBody::Session { .. } => kind::SESSION,
            DeviceBody::Clipboard(_) => kind::CLIPBOARD,
            DeviceBody::Denied { .. } => kind::DENIED,
            DeviceBody::Reconnect(_) => kind::RECONNECT,
            DeviceBody::Pong { .. } => kind::PONG,
        };
        cursor::write_header(kind, self.seq, self.lease_epoch, out);
        match &self.body {
            DeviceBody::Session { w, h, rotation, role } => {
                out.extend_from_slice(&w.to_be_bytes());
                out.extend_from_slice(&h.to_be_bytes());
                out.extend_from_slice(&[check_rotation(*rotation)?, *role as u8, 0, 0]);
            }
            DeviceBody::Clipboard(text) => cursor::write_clipboard(text, out)?,
            DeviceBody::Denied { reason, of_kind } => {
                out.extend_from_slice(&[*reason as u8, *of_kind, 0, 0]);
            }
            DeviceBody::Reconnect(url) => {
                cursor::check_len("url", url.len(), RECONNECT_URL_MAX)?;
                if url.is_empty() {
                    return Err(bad("url length", 0u32));
                }
                // Just checked: far below 2^16.
                let len = u16::try_from(url.len()).unwrap_or(u16::MAX);
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(&[0, 0]);
                out.extend_from_slice(url.as_bytes());
            }
            DeviceBody::Pong { t_ms } => out.extend_from_slice(&t_ms.to_be_bytes()),
        }
        Ok(())
    }
}

fn check_rotation(rotation: u8) -> Result<u8, InputError> {
    if rotation < 4 { Ok(rotation) } else { Err(bad("rotation", rotation)) }
}
