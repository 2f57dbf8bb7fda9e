//! Ingest worker: device capture, packetising, RoQ uplink, input injection
