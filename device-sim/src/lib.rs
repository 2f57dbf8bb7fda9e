//! A simulated Android device: real ADB over TCP, scrcpy server protocol, screen capture, input.
pub mod capture;
pub mod clip;
pub mod device;
pub mod encode;
pub mod h264;
pub mod input;
mod keys;
pub mod scrcpy;
pub mod screen;
pub mod services;
