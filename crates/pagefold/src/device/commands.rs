//! What a person or a control plane can say to a device that runs, a line at a time.

use std::fmt::Write;

use pagefold_picture::amount::Bytes;
use pagefold_virtio_mem_vhost::{Backend, Status};
use serde::Serialize;

use super::metrics;
use crate::size::parse_bytes;

const HELP: &str = "resize SIZE, status [--json], stats, quit, help";

/// What comes of a command.
pub enum Reply {
    /// Text to print: whole lines.
    Text(String),
    /// What was wrong, without an end of line.
    Wrong(String),
    /// The device is to end.
    Quit,
}

/// Does what a line says. An empty one says nothing.
pub fn run(backend: &Backend, line: &str) -> Reply {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    match words[..] {
        [] => Reply::Text(String::new()),
        ["resize", size] => match parse_bytes(size) {
            Ok(bytes) => match backend.resize(bytes) {
                Ok(()) => Reply::Text(format!("requested {bytes}\n")),
                Err(error) => Reply::Wrong(error.to_string()),
            },
            Err(error) => Reply::Wrong(error),
        },
        ["status"] => Reply::Text(text(&backend.status())),
        ["status", "--json"] => Reply::Text(json(&backend.status())),
        ["stats"] => Reply::Text(metrics::text(backend)),
        ["quit"] => Reply::Quit,
        ["help"] => Reply::Text(format!("{HELP}\n")),
        _ => Reply::Wrong(format!("'{line}' is no command; there are: {HELP}")),
    }
}

fn text(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: String| {
        // It is written to memory.
        let _ = writeln!(text, "{what:<10} {value}");
    };
    line("region", format!("{} at {:#x}", Bytes(status.region_size), status.addr));
    line("requested", Bytes(status.requested_size).to_string());
    line("plugged", format!("{} in blocks of {}", Bytes(status.plugged_size), Bytes(status.block_size)));
    line("resident", Bytes(status.resident).to_string());
    line(
        "driver",
        match (status.driver, status.connected) {
            (Some(features), _) => format!("ready, features {features:#x}"),
            (None, true) => "none; a VMM is connected".into(),
            (None, false) => "none; no VMM is connected".into(),
        },
    );
    if status.frozen {
        line("frozen", "the device is being migrated".into());
    }
    if status.host_failures > 0 {
        line("failures", format!("the host refused {} times", status.host_failures));
    }
    text
}

/// A status as JSON, with sizes and addresses in bytes. New members may come; these stay.
#[derive(Serialize)]
#[serde(remote = "Status")]
struct Members {
    #[serde(rename = "region")]
    addr: u64,
    region_size: u64,
    block_size: u64,
    requested_size: u64,
    usable_size: u64,
    plugged_size: u64,
    resident: u64,
    /// Feature bits; null where no driver is ready.
    #[serde(rename = "driver_features")]
    driver: Option<u64>,
    connected: bool,
    frozen: bool,
    host_failures: u64,
    /// Pairs of address and bytes, in order.
    plugged: Vec<(u64, u64)>,
}

#[derive(Serialize)]
struct Json<'a>(#[serde(with = "Members")] &'a Status);

fn json(status: &Status) -> String {
    // Numbers always can be written.
    serde_json::to_string(&Json(status)).map(|line| line + "\n").unwrap_or_default()
}
