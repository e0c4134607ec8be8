//! Runs in a guest: starts another kernel in place of the one that runs, with the same command line, and without a reset of the
//! machine (`kexec_file_load(2)`, `reboot(2)`). As root.
//!
//! `lab-kexec <kernel> <initial RAM disk>`. It does not come back.

use std::env;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use rustix::system::{RebootCommand, reboot};

fn main() -> Result<()> {
    let names: Vec<String> = env::args().skip(1).collect();
    let [kernel, disk] = &names[..] else { bail!("lab-kexec <kernel> <initial RAM disk>") };
    let open = |name: &String| File::open(name).with_context(|| name.clone());
    let (kernel, disk) = (open(kernel)?, open(disk)?);
    let words = CString::new(fs::read_to_string("/proc/cmdline")?.trim_end())?;
    let len = words.as_bytes_with_nul().len();
    // SAFETY: the kernel reads `len` bytes of the words, which live until it returns, and the files by their descriptors.
    let loaded = unsafe {
        let (kernel, disk) = (kernel.as_raw_fd(), disk.as_raw_fd());
        libc::syscall(libc::SYS_kexec_file_load, kernel, disk, len, words.as_ptr(), 0usize)
    };
    if loaded != 0 {
        return Err(io::Error::last_os_error()).context("the kernel does not load the other one");
    }
    reboot(RebootCommand::Kexec).context("the kernel does not start the other one")?;
    Ok(())
}
