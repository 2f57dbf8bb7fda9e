//! One binary with every role, and a demo of the whole system in one process
