//! The device's programs.
//!
//! Each answers as its Android counterpart does for the arguments that tools really use, and with
//! a usage line for the others. Invariant: a command ends by itself or when its stream is closed.

use fanlight_adb::service::sync_device::FileStore;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWrite;

use super::output::Output;
use super::shell::Command;
use super::{Services, input_command, picture, process};
use crate::device::unix_us;
use crate::scrcpy::version::hex_of;

/// What a program that writes a few lines has to say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
    pub(crate) code: u8,
}

impl Said {
    pub(crate) fn out(text: impl Into<Vec<u8>>) -> Self {
        Self { out: text.into(), ..Self::default() }
    }

    pub(crate) fn fail(code: u8, text: impl Into<String>) -> Self {
        Self { err: text.into() + "\n", code, ..Self::default() }
    }
}

/// Runs one command and returns its exit code.
pub(crate) async fn run<W: AsyncWrite + Unpin + Send>(
    services: &Services,
    command: &Command,
    output: &mut Output<W>,
) -> std::io::Result<u8> {
    let Some(name) = command.words.first() else { return Ok(0) };
    let name = name.rsplit('/').next().unwrap_or(name);
    let said = match name {
        "app_process" => return process::app_process(services, command, output).await,
        "screenrecord" => return picture::screenrecord(services, command.args(), output).await,
        "screencap" => picture::screencap(services, command.args()).await,
        "input" => input_command::run(services.device(), command.args()).await,
        "sleep" => sleep(command.args()).await,
        _ => quick(services, name, command.args()),
    };
    if !command.quiet {
        output.stdout(&said.out).await?;
    }
    if !command.quiet_errors {
        output.stderr(said.err.as_bytes()).await?;
    }
    Ok(said.code)
}

/// Programs that answer at once.
fn quick(services: &Services, name: &str, args: &[String]) -> Said {
    match name {
        "getprop" => getprop(services, args),
        "wm" => wm(services, args),
        "settings" => settings(services, args),
        "dumpsys" => dumpsys(services, args),
        "ls" => ls(services, args),
        "rm" => rm(services, args),
        "cat" => cat(services, args),
        "sha256sum" => sha256sum(services, args),
        "am" | "monkey" => {
            services.device().toast(&args.join(" "));
            Said::out("Starting\n")
        }
        "pm" if args.first().is_some_and(|a| a == "list") => Said::out(
            "package:android\npackage:com.android.settings\npackage:com.android.systemui\n",
        ),
        "echo" => Said::out(args.join(" ") + "\n"),
        "date" => Said::out(format!("{}\n", unix_us() / 1_000_000)),
        "id" | "whoami" => Said::out("uid=2000(shell) gid=2000(shell)\n"),
        "uname" => Said::out("Linux\n"),
        "mkdir" | "chmod" | "true" | ":" | "svc" | "setprop" => Said::default(),
        "false" | "pidof" | "pgrep" | "pkill" | "killall" => Said { code: 1, ..Said::default() },
        _ => Said::fail(127, format!("/system/bin/sh: {name}: inaccessible or not found")),
    }
}

async fn sleep(args: &[String]) -> Said {
    let Some(seconds) = args.first().and_then(|s| s.parse::<f64>().ok()).filter(|s| *s >= 0.0)
    else {
        return Said::fail(1, "sleep: give a number of seconds");
    };
    tokio::time::sleep(std::time::Duration::from_secs_f64(seconds.min(86_400.0))).await;
    Said::default()
}

fn getprop(services: &Services, args: &[String]) -> Said {
    let id = services.device().identity();
    let properties = [
        ("ro.build.version.release", "14"),
        ("ro.build.version.sdk", "34"),
        ("ro.product.brand", "Fanlight"),
        ("ro.product.cpu.abi", "x86_64"),
        ("ro.product.device", &id.product),
        ("ro.product.manufacturer", "Fanlight"),
        ("ro.product.model", &id.model),
        ("ro.product.name", &id.product),
        ("ro.serialno", &id.serial),
        ("ro.sf.lcd_density", "320"),
        ("sys.boot_completed", "1"),
    ];
    match args.first() {
        None => Said::out(properties.map(|(k, v)| format!("[{k}]: [{v}]\n")).concat()),
        Some(name) => {
            let found = properties.iter().find(|(k, _)| k == name).map(|(_, v)| *v);
            let default = args.get(1).map_or("", String::as_str);
            Said::out(found.unwrap_or(default).to_owned() + "\n")
        }
    }
}

fn wm(services: &Services, args: &[String]) -> Said {
    // `wm` tells the natural size, whichever way the device is turned.
    let (w, h) = services.device().lock_state().model.natural;
    match args.first().map(String::as_str) {
        Some("size") => Said::out(format!("Physical size: {w}x{h}\n")),
        Some("density") => Said::out("Physical density: 320\n"),
        _ => Said::fail(255, "wm: only `wm size` and `wm density` are simulated"),
    }
}

/// Only the rotation is kept; the rest is accepted and forgotten.
fn settings(services: &Services, args: &[String]) -> Said {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let device = services.device();
    match words[..] {
        ["get", "system", "user_rotation"] => {
            Said::out(format!("{}\n", device.lock_state().model.rotation))
        }
        ["put", "system", "user_rotation", value] => match value {
            "0" | "1" | "2" | "3" => {
                let turned = |rotation: u8| rotation % 2 != u8::from(value == "1" || value == "3");
                if turned(device.lock_state().model.rotation) {
                    device.rotate();
                }
                Said::default()
            }
            _ => Said::fail(255, "settings: a rotation is 0 to 3"),
        },
        ["get", _, _] => Said::out("null\n"),
        ["put" | "delete", ..] | ["list", _] => Said::default(),
        _ => Said::fail(255, "usage: settings get|put|delete|list NAMESPACE KEY [VALUE]"),
    }
}

fn dumpsys(services: &Services, args: &[String]) -> Said {
    let device = services.device();
    let (w, h) = device.size();
    let (rotation, awake) = {
        let state = device.lock_state();
        (u32::from(state.model.rotation) * 90, state.model.awake)
    };
    match args.first().map(String::as_str) {
        Some("display" | "window" | "SurfaceFlinger") => Said::out(format!(
            "  mCurrentRotation=ROTATION_{rotation}\n  init={w}x{h} 320dpi cur={w}x{h} app={w}x{h}\n"
        )),
        Some("input") => Said::out(format!("  SurfaceOrientation: {}\n", rotation / 90)),
        Some("power") => {
            let state = if awake { "Awake" } else { "Asleep" };
            Said::out(format!("  mWakefulness={state}\n"))
        }
        Some("battery") => Said::out("Current Battery Service state:\n  level: 87\n  status: 2\n"),
        Some(other) => Said::out(format!("Can't find service: {other}\n")),
        None => Said::fail(1, "dumpsys: name a service"),
    }
}

fn ls(services: &Services, args: &[String]) -> Said {
    let long = args.iter().any(|a| a.starts_with('-') && a.contains('l'));
    let files = services.files();
    let mut said = Said::default();
    for path in paths(args).into_iter().chain(paths(args).is_empty().then_some("/")) {
        let Some(stat) = files.stat(path) else {
            said.err += &format!("ls: {path}: No such file or directory\n");
            said.code = 1;
            continue;
        };
        let line = |name: &str, size: u64| {
            if long {
                format!("-rw-rw---- 1 shell shell {size} {name}\n")
            } else {
                format!("{name}\n")
            }
        };
        if stat.is_dir() {
            for entry in files.list(path) {
                said.out.extend(line(&entry.name, entry.stat.size).bytes());
            }
        } else {
            said.out.extend(line(path, stat.size).bytes());
        }
    }
    said
}

fn rm(services: &Services, args: &[String]) -> Said {
    let force = args.iter().any(|a| a.starts_with('-') && a.contains('f'));
    let mut said = Said::default();
    for path in paths(args) {
        if !services.files().remove(path) && !force {
            said.err += &format!("rm: {path}: No such file or directory\n");
            said.code = 1;
        }
    }
    said
}

fn cat(services: &Services, args: &[String]) -> Said {
    with_files(services, "cat", args, |_, data| data.to_vec())
}

fn sha256sum(services: &Services, args: &[String]) -> Said {
    with_files(services, "sha256sum", args, |path, data| {
        format!("{}  {path}\n", hex_of(&Sha256::digest(data))).into_bytes()
    })
}

fn with_files(
    services: &Services,
    name: &str,
    args: &[String],
    each: impl Fn(&str, &[u8]) -> Vec<u8>,
) -> Said {
    let mut said = Said::default();
    for path in paths(args) {
        match services.files().get(path) {
            Some(data) => said.out.extend(each(path, &data)),
            None => {
                said.err += &format!("{name}: {path}: No such file or directory\n");
                said.code = 1;
            }
        }
    }
    said
}

/// The arguments that are not options.
fn paths(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).filter(|a| !a.starts_with('-')).collect()
}

#[cfg(test)]
#[path = "commands_tests.rs"]
mod tests;
