//! A simulated Android device: real ADB over TCP, scrcpy server protocol, screen capture, input.
pub mod encode;
pub mod screen;
