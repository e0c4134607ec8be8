//! The command line of `pagefold device`.

use std::path::PathBuf;

use clap::Args;

use crate::size::parse_bytes;

/// A virtio-mem device for a VMM: memory that a guest plugs and unplugs, in a process of its own (vhost-user)
///
/// The VMM connects to --socket as a vhost-user front end (QEMU 10.2 or newer: vhost-user-test-device-pci with virtio-id=24,
/// num_vqs=1, vq_size=128, config_size=56) and has the same FILE as guest memory at --region. Unplugged memory goes back to
/// the host: holes in the file.
///
/// Commands come from standard input, a line each, and over --control: 'resize SIZE', 'status', 'status --json', 'stats'
/// (Prometheus text), 'quit', 'help'. The guest's requests are printed on standard error.
///
/// SIGTERM, SIGINT and a VMM that goes end it, with exit code 0; exit code 1 and a line say what was wrong: a socket in use,
/// a file of another size, a region that does not fit, a VMM whose connection was refused.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pagefold device --socket vm.sock --memory /dev/shm/vm.mem --region 0x100000000 --size 4G
  pagefold device --socket vm.sock --memory memfd --region 4G --size 4G --control vm.ctl
  pagefold device --tell vm.ctl resize 2G      ask a device that runs
  pagefold device --tell vm.ctl stats
")]
pub struct DeviceArgs {
    /// Where the VMM connects
    #[arg(long, value_name = "PATH", required_unless_present_any = ["tell", "command"])]
    pub socket: Option<PathBuf>,

    /// The region's memory: a file (made if there is none) on tmpfs or hugetlbfs, or 'memfd' for one without a name
    #[arg(long, value_name = "FILE", required_unless_present_any = ["tell", "command"])]
    pub memory: Option<PathBuf>,

    /// Where the region begins in guest physical address space (0x100000000, 4G)
    #[arg(long, value_name = "ADDR", required_unless_present_any = ["tell", "command"], value_parser = parse_address)]
    pub region: Option<u64>,

    /// The region: the most that can be plugged
    #[arg(long, value_name = "SIZE", required_unless_present_any = ["tell", "command"], value_parser = parse_bytes)]
    pub size: Option<u64>,

    /// A device block, the smallest part that can be plugged: a power of two [default: the host's huge page]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub block: Option<u64>,

    /// The guest's memory block, which address and size are multiples of
    #[arg(long, value_name = "SIZE", default_value = "128M", value_parser = parse_bytes)]
    pub guest_block: u64,

    /// The guest's NUMA node that the memory is on (ACPI proximity domain)
    #[arg(long, value_name = "N")]
    pub node: Option<u16>,

    /// The size that the guest is asked to plug at first
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_bytes)]
    pub requested: u64,

    /// A socket that takes commands
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// Save the device's state to this file at exit, and restore it at start if the file has one. A device that is killed
    /// leaves none, and the file says so
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,

    /// Stay when the VMM disconnects: when it reconnects, the device is as it was
    #[arg(long)]
    pub stay: bool,

    /// Fill memory when it is plugged: if the host has none, the guest is told to wait
    #[arg(long)]
    pub prealloc: bool,

    /// Do not print the guest's requests
    #[arg(long, short)]
    pub quiet: bool,

    /// Send a command to a device that runs, by its --control socket, and print the answer
    #[arg(long, value_name = "PATH", conflicts_with_all = ["socket", "memory", "region", "size"])]
    #[arg(requires = "command")]
    pub tell: Option<PathBuf>,

    /// The command to send
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Reads an address: hexadecimal with 0x, or a size.
fn parse_address(text: &str) -> Result<u64, String> {
    match text.strip_prefix("0x") {
        Some(digits) => {
            u64::from_str_radix(digits, 16).map_err(|_| format!("'{text}' is no hexadecimal number"))
        }
        None => parse_bytes(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hexadecimal_or_sizes() {
        assert_eq!(parse_address("0x100000000"), Ok(1 << 32));
        assert_eq!(parse_address("4G"), Ok(1 << 32));
        assert!(
            parse_address("0xg").is_err() && parse_address("0x").is_err() && parse_address("-1").is_err()
        );
    }
}
