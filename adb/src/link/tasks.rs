//! The two tasks of a link: socket to multiplexer, and multiplexer to socket.
//!
//! Not here: what streams and applications see (`link`). Invariant: header and payload of a packet
//! leave in one write, and the reader never waits for the writer.

use std::{sync::Arc, time::Duration};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::Link;
use crate::{
    counters::add,
    error::{Disconnect, ProtocolError},
    packet::{ChecksumRule, Packet, PacketDecoder},
};

/// Bytes asked of the socket at once; larger packets reserve what they need.
const READ_CHUNK: usize = 64 * 1024;
/// Small packets gathered into one write up to this size.
const BATCH_MAX: usize = 64 * 1024;
/// A payload above this is written from where it lies instead of being copied into the batch.
const COPY_MAX: usize = 8 * 1024;
/// How long data of streams already let go may take after the last handle is gone.
const LINGER: Duration = Duration::from_secs(2);

/// Bytes from the socket to the multiplexer, until either ends.
pub(super) async fn read<R: AsyncRead + Unpin>(
    link: Arc<Link>,
    mut reader: R,
    mut decoder: PacketDecoder,
    mut buffer: BytesMut,
) {
    let reason = loop {
        if let Err(error) = link.take_packets(&mut decoder, &mut buffer) {
            break error.into();
        }
        if buffer.capacity() - buffer.len() < READ_CHUNK / 4 {
            buffer.reserve(READ_CHUNK);
        }
        let read = tokio::select! {
            biased;
            () = link.over.cancelled() => return,
            read = reader.read_buf(&mut buffer) => read,
        };
        match read {
            Ok(0) if buffer.is_empty() => break Disconnect::ByPeer,
            Ok(0) => break ProtocolError::Truncated { have: buffer.len() }.into(),
            Ok(_) => {}
            Err(error) => break Disconnect::Io(Arc::new(error)),
        }
    };
    link.finish(reason);
}

impl Link {
    /// Hands every complete packet in `buffer` to the multiplexer.
    fn take_packets(
        &self,
        decoder: &mut PacketDecoder,
        buffer: &mut BytesMut,
    ) -> Result<(), ProtocolError> {
        while let Some(packet) = decoder.decode(buffer)? {
            add(&self.counters.packets_in, 1);
            add(&self.counters.bytes_in, packet.payload.len() as u64);
            tracing::trace!(
                command = packet.command.name(),
                packet.arg0,
                packet.arg1,
                len = packet.payload.len(),
                "in"
            );
            let mut state = self.lock();
            state.mux.on_packet(packet)?;
            self.after(&mut state);
        }
        Ok(())
    }

    /// Fills `batch` with packets; a large payload ends it and is returned to be written in place.
    fn gather(&self, batch: &mut BytesMut, rule: ChecksumRule) -> Option<Packet> {
        let mut state = self.lock();
        let mut large = None;
        while let Some(packet) = state.mux.poll_packet() {
            add(&self.counters.packets_out, 1);
            add(&self.counters.bytes_out, packet.payload.len() as u64);
            batch.extend_from_slice(&packet.header(rule));
            if packet.payload.len() > COPY_MAX {
                large = Some(packet);
                break;
            }
            batch.extend_from_slice(&packet.payload);
            if batch.len() >= BATCH_MAX {
                break;
            }
        }
        state.dispatch(&self.incoming);
        large
    }
}

/// Packets from the multiplexer to the socket: header and payload in one write, always.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    link: Arc<Link>,
    mut writer: W,
    rule: ChecksumRule,
) {
    let linger = async {
        link.draining.cancelled().await;
        tokio::time::sleep(LINGER).await;
    };
    let work = async {
        let mut batch = BytesMut::with_capacity(BATCH_MAX + COPY_MAX);
        loop {
            let large = link.gather(&mut batch, rule);
            if batch.is_empty() {
                if link.draining.is_cancelled() && link.lock().mux.is_drained() {
                    return Disconnect::ByUs;
                }
                link.output.notified().await;
                continue;
            }
            let payload = large.map(|packet| packet.payload).unwrap_or_default();
            let written = writer.write_all_buf(&mut Buf::chain(&batch[..], payload)).await;
            if let Err(error) = written {
                return Disconnect::Io(Arc::new(error));
            }
            batch.clear();
        }
    };
    let reason = tokio::select! {
        biased;
        () = link.over.cancelled() => None,
        reason = work => Some(reason),
        () = linger => Some(Disconnect::ByUs),
    };
    if let Some(reason) = reason {
        link.finish(reason);
    }
    // The peer learns of the end at once, whatever still holds the reading half.
    let _ = tokio::time::timeout(LINGER, writer.shutdown()).await;
}
