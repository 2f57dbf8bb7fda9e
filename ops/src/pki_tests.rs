//! Tests of `pki`: real handshakes in memory, and what must be refused.

use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

use rustls::{ClientConnection, ServerConnection, pki_types::ServerName};

use super::*;

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn identity(ca: &Ca, name: &str) -> NodeIdentity {
    NodeIdentity::from_pem(ca.issue_node(&node(name), &[]).unwrap()).unwrap()
}

/// Runs a handshake in memory; gives what the server learnt of the client.
fn handshake(
    server: &NodeIdentity,
    client: &NodeIdentity,
    name: &str,
) -> Result<Option<NodeId>, rustls::Error> {
    let mut s =
        ServerConnection::new(Arc::new(server_config_mtls(server, &[b"x"]).unwrap())).unwrap();
    let mut c = ClientConnection::new(
        Arc::new(client_config_mtls(client, &[b"x"]).unwrap()),
        ServerName::try_from(name.to_owned()).unwrap(),
    )
    .unwrap();
    for _ in 0..8 {
        let mut wire = Vec::new();
        c.write_tls(&mut wire).unwrap();
        s.read_tls(&mut wire.as_slice()).unwrap();
        s.process_new_packets()?;
        let mut wire = Vec::new();
        s.write_tls(&mut wire).unwrap();
        c.read_tls(&mut wire.as_slice()).unwrap();
        c.process_new_packets()?;
    }
    assert!(!s.is_handshaking() && !c.is_handshaking());
    Ok(s.peer_certificates().and_then(|certs| peer_node(&certs[0])))
}

#[test]
fn nodes_of_one_fleet_meet_and_know_each_other() {
    let ca = Ca::generate().unwrap();
    let (router, worker) = (identity(&ca, "router-1"), identity(&ca, "worker_2.x"));
    assert_eq!(handshake(&router, &worker, SERVER_NAME).unwrap(), Some(node("worker_2.x")));
    assert_eq!(
        handshake(&router, &worker, "router-1.node.fanlight").unwrap(),
        Some(node("worker_2.x"))
    );
    assert_eq!(peer_node(router.cert()), Some(node("router-1")));
}

#[test]
fn another_fleets_node_is_refused_by_both_sides() {
    let (ours, theirs) = (Ca::generate().unwrap(), Ca::generate().unwrap());
    let (router, stranger) = (identity(&ours, "router-1"), identity(&theirs, "router-1"));
    handshake(&router, &stranger, SERVER_NAME).unwrap_err();
    handshake(&stranger, &router, SERVER_NAME).unwrap_err();
}

#[test]
fn only_a_control_replica_can_pose_as_one() {
    let ca = Ca::generate().unwrap();
    let worker = identity(&ca, "worker-1");
    let control =
        NodeIdentity::from_pem(ca.issue_control(&node("control-1"), &[]).unwrap()).unwrap();
    handshake(&control, &worker, CONTROL_SERVER_NAME).unwrap();
    handshake(&control, &worker, SERVER_NAME).unwrap();
    handshake(&identity(&ca, "router-1"), &worker, CONTROL_SERVER_NAME).unwrap_err();
}

#[test]
fn a_folder_keeps_its_ca_and_the_key_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pki");
    let first = Ca::load_or_create(&path).unwrap();
    let second = Ca::load_or_create(&path).unwrap();
    assert_eq!(first.cert_pem(), second.cert_pem());
    let mode = fs::metadata(path.join("ca.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let names: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    // A certificate of the first is good at the second: the key was kept too.
    let (a, b) = (identity(&first, "a"), identity(&second, "b"));
    handshake(&a, &b, SERVER_NAME).unwrap();
}

#[test]
fn an_identity_survives_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::generate().unwrap();
    ca.issue_node(&node("n"), &["127.0.0.1".to_owned(), "host.example".to_owned()])
        .unwrap()
        .save(dir.path())
        .unwrap();
    let loaded = NodeIdentity::load(dir.path()).unwrap();
    assert_eq!(loaded.node(), &node("n"));
    handshake(&loaded, &loaded, "host.example").unwrap();
    handshake(&loaded, &loaded, "127.0.0.1").unwrap();
    assert_eq!(loaded.cert_sha256(), cert_sha256(loaded.cert()));
}

#[test]
fn unfit_files_are_named_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let error = NodeIdentity::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("node.pem") && error.contains("No such file"), "{error}");

    let (ca, other) = (Ca::generate().unwrap(), Ca::generate().unwrap());
    let mut mixed = ca.issue_node(&node("n"), &[]).unwrap();
    mixed.ca_pem = other.cert_pem().to_owned();
    // Same subject, other key: found by the signature, not by the name.
    let error = NodeIdentity::from_pem(mixed).unwrap_err().to_string();
    assert!(error.contains("another CA"), "{error}");

    let mut mixed = ca.issue_node(&node("n"), &[]).unwrap();
    mixed.key_pem = ca.issue_node(&node("n"), &[]).unwrap().key_pem;
    let error = NodeIdentity::from_pem(mixed.clone()).unwrap_err().to_string();
    assert!(!error.contains("PRIVATE"), "{error}");
    assert!(!format!("{mixed:?} {ca:?}").contains("BEGIN"));

    fs::write(dir.path().join("ca.pem"), "x").unwrap();
    let error = Ca::load_or_create(dir.path()).unwrap_err().to_string();
    assert!(error.contains("ca.key"), "{error}");
}

#[test]
fn a_ca_is_not_a_node() {
    let ca = Ca::generate().unwrap();
    let der = CertificateDer::from_pem_slice(ca.cert_pem().as_bytes()).unwrap();
    assert_eq!(peer_node(&der), None);
    assert_eq!(peer_node(&CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])), None);
}
