//! Thins one viewer that cannot take the whole stream.
