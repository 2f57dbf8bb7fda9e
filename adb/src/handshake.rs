//! CNXN and AUTH: what happens on a byte stream before the multiplexer takes over.
//!
//! Not here: streams (`mux`), sockets (`host`, `device`), time limits (their callers set them).
//! Invariant: until both banners are known no payload above 4 KiB is taken, and a peer gets a
//! bounded number of tries.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use rand::RngCore as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::{
    auth::{AdbKey, AdbPublicKey, TOKEN_LEN},
    device::AuthPolicy,
    error::{AdbError, Disconnect, ProtocolError},
    features::{self, DELAYED_ACK, DeviceBanner, FeatureSet},
    link::Agreed,
    mux::MuxConfig,
    packet::{
        ChecksumRule, Command, MAX_PAYLOAD, MAX_PAYLOAD_V1, Packet, PacketDecoder, VERSION_MIN,
        VERSION_SKIP_CHECKSUM,
    },
};

const AUTH_TOKEN: u32 = 1;
const AUTH_SIGNATURE: u32 = 2;
const AUTH_PUBLIC_KEY: u32 = 3;
/// Signatures a host may try; adb offers each key of a user once.
const SIGNATURES_MAX: usize = 16;
/// A peer that takes less than this per packet cannot be worked with.
const PEER_PAYLOAD_MIN: u32 = 256;

/// What this end puts into its CNXN.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) version: u32,
    pub(crate) max_payload: u32,
}

impl Default for Offer {
    fn default() -> Self {
        Self { version: VERSION_SKIP_CHECKSUM, max_payload: MAX_PAYLOAD }
    }
}

/// Packets one at a time over a byte stream.
struct Wire<'a, S> {
    io: &'a mut S,
    decoder: PacketDecoder,
    buffer: BytesMut,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Wire<'a, S> {
    fn new(io: &'a mut S) -> Self {
        Self {
            io,
            decoder: PacketDecoder::new(MAX_PAYLOAD_V1, ChecksumRule::Handshake),
            buffer: BytesMut::with_capacity(MAX_PAYLOAD_V1 as usize),
        }
    }

    async fn send(&mut self, packet: Packet) -> Result<(), AdbError> {
        let bytes = packet.to_bytes(ChecksumRule::Handshake);
        self.io
            .write_all(&bytes)
            .await
            .map_err(|source| AdbError::Io { doing: "writing the ADB handshake", source })
    }

    async fn receive(&mut self) -> Result<Packet, AdbError> {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.buffer)? {
                return Ok(packet);
            }
            let read = self
                .io
                .read_buf(&mut self.buffer)
                .await
                .map_err(|source| AdbError::Io { doing: "reading the ADB handshake", source })?;
            if read == 0 {
                return Err(match self.buffer.len() {
                    0 => Disconnect::ByPeer.into(),
                    have => ProtocolError::Truncated { have }.into(),
                });
            }
        }
    }
}

fn connect_packet(offer: Offer, banner: Vec<u8>) -> Packet {
    Packet::new(Command::Cnxn, offer.version, offer.max_payload, banner)
}

fn unexpected(packet: &Packet, when: &'static str) -> AdbError {
    ProtocolError::Unexpected { command: packet.command.name(), when }.into()
}

/// Settles version and packet size with the peer's CNXN.
fn agree(
    offer: Offer,
    cnxn: &Packet,
    delayed_ack: bool,
    mut mux: MuxConfig,
    leftover: BytesMut,
) -> Result<Agreed, AdbError> {
    if cnxn.arg0 < VERSION_MIN {
        return Err(ProtocolError::Unusable { what: "version", value: cnxn.arg0 }.into());
    }
    if cnxn.arg1 < PEER_PAYLOAD_MIN {
        return Err(ProtocolError::Unusable { what: "maximum payload", value: cnxn.arg1 }.into());
    }
    mux.delayed_ack = delayed_ack;
    mux.max_payload = cnxn.arg1.min(offer.max_payload);
    Ok(Agreed { rule: ChecksumRule::for_versions(offer.version, cnxn.arg0), mux, leftover })
}

/// The host's part: announces itself, signs the token or offers its key, reads the banner.
/// `key_offered` tells a caller that gives up waiting what it was waiting for.
pub(crate) async fn as_host<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    offer: Offer,
    our_features: &FeatureSet,
    key: Option<&AdbKey>,
    key_offered: &AtomicBool,
    mux: MuxConfig,
) -> Result<(DeviceBanner, Agreed), AdbError> {
    let mut wire = Wire::new(io);
    wire.send(connect_packet(offer, features::encode_host_banner(our_features))).await?;
    let mut tokens = 0;
    loop {
        let packet = match wire.receive().await {
            Ok(packet) => packet,
            // A device that has seen our key and hangs up does not want it.
            Err(AdbError::Disconnected(_) | AdbError::Io { .. }) if tokens > 1 => {
                return Err(AdbError::Unauthorized);
            }
            Err(error) => return Err(error),
        };
        match packet.command {
            Command::Cnxn => {
                let banner = DeviceBanner::parse(&packet.payload)?;
                let delayed_ack = our_features.has(DELAYED_ACK) && banner.features.has(DELAYED_ACK);
                let agreed = agree(offer, &packet, delayed_ack, mux, wire.buffer)?;
                return Ok((banner, agreed));
            }
            Command::Auth if packet.arg0 == AUTH_TOKEN => {
                let key = key.ok_or(AdbError::AuthRequired)?;
                tokens += 1;
                let answer = match tokens {
                    1 => {
                        let signature = key.sign(&packet.payload)?;
                        Packet::new(Command::Auth, AUTH_SIGNATURE, 0, signature)
                    }
                    // The signature was not known: offer the key, the user may say yes.
                    2 => {
                        let public = key.public().to_auth_payload();
                        key_offered.store(true, Ordering::Relaxed);
                        Packet::new(Command::Auth, AUTH_PUBLIC_KEY, 0, public)
                    }
                    _ => return Err(AdbError::Unauthorized),
                };
                wire.send(answer).await?;
            }
            Command::Auth => return Err(ProtocolError::BadAuth("not a token").into()),
            Command::Stls => return Err(AdbError::TlsRequired),
            _ => return Err(unexpected(&packet, "before CNXN")),
        }
    }
}

/// The device's part: reads the host's CNXN, checks its key if the policy asks, answers.
pub(crate) async fn as_device<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    offer: Offer,
    banner: &DeviceBanner,
    policy: &AuthPolicy,
    mux: MuxConfig,
) -> Result<(FeatureSet, Agreed), AdbError> {
    let mut wire = Wire::new(io);
    let cnxn = wire.receive().await?;
    if cnxn.command != Command::Cnxn {
        return Err(unexpected(&cnxn, "before CNXN"));
    }
    let host_features = features::parse_host_banner(&cnxn.payload)?;
    if let AuthPolicy::Keys { trusted, accept_unknown } = policy {
        authenticate(&mut wire, trusted, *accept_unknown).await?;
    }
    wire.send(connect_packet(offer, banner.encode())).await?;
    let delayed_ack = host_features.has(DELAYED_ACK) && banner.features.has(DELAYED_ACK);
    let agreed = agree(offer, &cnxn, delayed_ack, mux, wire.buffer)?;
    Ok((host_features, agreed))
}

async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<'_, S>,
    trusted: &[AdbPublicKey],
    accept_unknown: bool,
) -> Result<(), AdbError> {
    for _ in 0..SIGNATURES_MAX {
        let mut token = [0; TOKEN_LEN];
        rand::rng().fill_bytes(&mut token);
        wire.send(Packet::new(Command::Auth, AUTH_TOKEN, 0, token.to_vec())).await?;
        let answer = wire.receive().await?;
        if answer.command != Command::Auth {
            return Err(unexpected(&answer, "instead of AUTH"));
        }
        match answer.arg0 {
            AUTH_SIGNATURE => {
                if trusted.iter().any(|key| key.verify(&token, &answer.payload)) {
                    return Ok(());
                }
            }
            AUTH_PUBLIC_KEY => {
                let key = AdbPublicKey::parse(&answer.payload)?;
                if accept_unknown || trusted.contains(&key) {
                    tracing::info!(host = key.name(), "adb key accepted");
                    return Ok(());
                }
                tracing::info!(host = key.name(), "adb key not trusted");
                return Err(AdbError::Unauthorized);
            }
            _ => return Err(ProtocolError::BadAuth("neither signature nor public key").into()),
        }
    }
    Err(AdbError::Unauthorized)
}
