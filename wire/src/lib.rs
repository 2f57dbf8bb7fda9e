//! Bytes on the hop and in RTP: RoQ framing, RTP, H.264 access units, packetiser, input messages
