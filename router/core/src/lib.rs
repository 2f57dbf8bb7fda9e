//! The router's mind, sans-IO: streams, viewers, GOP cache, keyframe merging, input permission
