//! Logs, metrics, admin listener, shutdown, config merge, certificates, NodeLink client
