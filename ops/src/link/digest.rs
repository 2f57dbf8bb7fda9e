//! Digests that both ends of a link compute: of what a node shall run, and of what it runs. Not
//! for security: an accident must not go unseen, an adversary is kept out by mTLS. Invariant: the
//! value depends only on the set of items, not on their order, and is zero for none.

use fanlight_proto::{
    node::v1::{Running, Want, want::Role},
    types::v1::NodeKind,
};
use prost::Message as _;

/// Digest of wants: whole items, so that a change inside a role is a change too.
pub fn want_digest<'a>(wants: impl IntoIterator<Item = &'a Want>) -> u64 {
    // Encoding is canonical here: no map field, one library on both ends.
    wants.into_iter().fold(0, |sum, want| sum ^ hash(&want.encode_to_vec()))
}

/// Digest of what a node runs, over (stream, epoch, role, parent).
pub fn run_digest(kind: NodeKind, running: &[Running]) -> u64 {
    running.iter().fold(0, |sum, r| {
        let (stream, epoch) =
            r.assignment.as_ref().map_or(("", 0), |a| (a.stream.as_str(), a.epoch));
        let role = match (kind, r.parent_node.is_empty()) {
            (NodeKind::IngestWorker, _) => 1,
            (_, true) => 2,
            (_, false) => 3,
        };
        sum ^ item(stream, epoch, role, &r.parent_node)
    })
}

/// What [`run_digest`] gives on a node that runs exactly these wants.
pub fn expected_run_digest<'a>(wants: impl IntoIterator<Item = &'a Want>) -> u64 {
    wants.into_iter().fold(0, |sum, want| {
        let (stream, epoch) =
            want.assignment.as_ref().map_or(("", 0), |a| (a.stream.as_str(), a.epoch));
        let (role, parent) = match &want.role {
            Some(Role::Edge(edge)) => (3, edge.parent_node.as_str()),
            Some(Role::Ingest(_)) => (1, ""),
            Some(Role::Origin(_)) | None => (2, ""),
        };
        sum ^ item(stream, epoch, role, parent)
    })
}

fn item(stream: &str, epoch: u64, role: u8, parent: &str) -> u64 {
    let mut bytes = Vec::with_capacity(stream.len() + parent.len() + 10);
    bytes.extend_from_slice(stream.as_bytes());
    // Zero cannot stand in a name, so two fields never run into each other.
    bytes.push(0);
    bytes.extend_from_slice(&epoch.to_be_bytes());
    bytes.push(role);
    bytes.extend_from_slice(parent.as_bytes());
    hash(&bytes)
}

/// FNV-1a, then a finaliser: items are combined by XOR, which needs all bits well mixed.
fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    let mut x = fnv;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use fanlight_proto::{
        node::v1::{EdgeRole, IngestRole, OriginRole},
        types::v1::Assignment,
    };

    use super::*;

    fn want(stream: &str, epoch: u64, role: Role) -> Want {
        let assignment = Assignment { stream: stream.to_owned(), epoch, origin: None };
        Want { assignment: Some(assignment), role: Some(role) }
    }

    #[test]
    fn order_does_not_matter_and_content_does() {
        let a = want("streams/a", 1, Role::Origin(OriginRole::default()));
        let b = want("streams/b", 1, Role::Origin(OriginRole::default()));
        assert_eq!(want_digest([]), 0);
        assert_eq!(want_digest([&a, &b]), want_digest([&b, &a]));
        assert_ne!(want_digest([&a]), want_digest([&b]));
        let controller = OriginRole { controller_viewer: "v".into(), ..OriginRole::default() };
        let changed = want("streams/a", 1, Role::Origin(controller));
        assert_ne!(want_digest([&a]), want_digest([&changed]));
        assert_eq!(expected_run_digest([&a]), expected_run_digest([&changed]));
    }

    #[test]
    fn running_what_is_wanted_gives_the_expected_digest() {
        let edge = EdgeRole { parent_node: "nodes/p".into(), ..EdgeRole::default() };
        let cases = [
            (NodeKind::IngestWorker, want("streams/a", 7, Role::Ingest(IngestRole::default())), ""),
            (NodeKind::Router, want("streams/a", 7, Role::Origin(OriginRole::default())), ""),
            (NodeKind::Router, want("streams/a", 7, Role::Edge(edge)), "nodes/p"),
        ];
        let mut seen = Vec::new();
        for (kind, want, parent) in cases {
            let running = Running {
                assignment: want.assignment.clone(),
                parent_node: parent.to_owned(),
                ..Running::default()
            };
            let digest = run_digest(kind, std::slice::from_ref(&running));
            assert_eq!(digest, expected_run_digest([&want]));
            seen.push(digest);
        }
        seen.dedup();
        assert_eq!(seen.len(), 3, "roles differ");
    }
}
