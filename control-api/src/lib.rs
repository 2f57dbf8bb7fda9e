//! Control API: placement, viewers, tokens, NodeLink server
