//! Fanlight's API: protobuf messages and tonic services, identifiers, join-token claims, error
//! reasons. Not a place for logic. Invariant: everything here is part of the public contract and
//! changes only compatibly.

pub mod claims;
pub mod id;
pub mod reason;

/// Messages shared by the backend-facing and the node-facing API.
pub mod types {
    /// Version 1.
    pub mod v1 {
        #![allow(
            missing_docs,
            unreachable_pub,
            unused_qualifications,
            clippy::all,
            clippy::pedantic,
            clippy::allow_attributes_without_reason,
            reason = "generated; documented in the .proto files"
        )]
        tonic::include_proto!("fanlight.types.v1");
    }
}

/// The API that the platform's backend calls.
pub mod control {
    /// Version 1.
    pub mod v1 {
        #![allow(
            missing_docs,
            unreachable_pub,
            unused_qualifications,
            clippy::all,
            clippy::pedantic,
            clippy::allow_attributes_without_reason,
            reason = "generated; documented in the .proto files"
        )]
        tonic::include_proto!("fanlight.control.v1");
    }
}

/// Links between nodes and the control API, and between nodes (the hop's control messages).
pub mod node {
    /// Version 1.
    pub mod v1 {
        #![allow(
            missing_docs,
            unreachable_pub,
            unused_qualifications,
            clippy::all,
            clippy::pedantic,
            clippy::allow_attributes_without_reason,
            reason = "generated; documented in the .proto files"
        )]
        tonic::include_proto!("fanlight.node.v1");
    }
}

/// Encoded `FileDescriptorSet` of all of the above, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
