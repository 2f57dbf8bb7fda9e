//! The router's hands and feet: shard threads, QUIC ingest, WHEP, NodeLink
