//! Sender-side bandwidth estimate of one viewer. Placeholder text to be replaced.
