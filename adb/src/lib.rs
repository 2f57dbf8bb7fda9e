//! Async ADB transport: codec, host side, device side
