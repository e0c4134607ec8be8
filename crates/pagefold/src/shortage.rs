//! Too little memory is told in a line, and is no crash.
//!
//! What may be large is asked for in ways that can fail, and the code that asks says what to do without. Everything else is
//! small: when not even that is to be had, nothing is left to do but to say so and end.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::SIGABRT;
use signal_hook::low_level;

/// The system's allocator, which ends the program when it has nothing small left.
struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Less than this is small: a request for so little cannot be done without.
const SMALL: usize = 64 << 10;
const LINE: &[u8] =
    b"pagefold: there is too little memory: free some, or raise the limit (ulimit -v, or the cgroup's)\n";

/// Ends with exit code 1 instead of a crash where memory that is not small was asked for in a way that cannot fail; the
/// standard library has said so then.
pub fn end_without_a_crash() {
    // SAFETY: the handler does nothing but to end the process, which a signal's handler may.
    let registered = unsafe { low_level::register(SIGABRT, || low_level::exit(1)) };
    // Without it, a shortage is a crash, and everything else is as it was.
    drop(registered);
}

/// `memory`, unless there is none although little was asked for.
fn checked(memory: *mut u8, size: usize) -> *mut u8 {
    if memory.is_null() && size < SMALL {
        // Where stderr cannot be written, there is nothing left to report it to.
        let _ = rustix::io::write(rustix::stdio::stderr(), LINE);
        low_level::exit(1);
    }
    memory
}

// SAFETY: all of it is the system's allocator's; what it returns is passed on unchanged, or the process ends.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        checked(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as of `alloc`.
        checked(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as of `alloc`; the memory came from there.
        checked(unsafe { System.realloc(memory, layout, size) }, size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory came from the system's allocator, with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Keeps this process within its control group's limit of memory, so that a request for too much fails and can be told. Beyond
/// the limit the kernel would end it without a word. Only for commands whose memory is all in use: those that reserve more
/// than they use count what they reserve.
pub fn keep_to_the_cgroup() {
    // What is no data of its own: its code, its stack, page tables.
    const BESIDES: u64 = 6 << 20;
    let Some(limit) = cgroup_limit(Path::new("/")) else { return };
    let data = limit.saturating_sub(BESIDES).max(BESIDES);
    let old = getrlimit(Resource::Data);
    if old.current.is_none_or(|current| current > data) {
        // A limit that cannot be lowered is as it was.
        let _ = setrlimit(Resource::Data, Rlimit { current: Some(data), maximum: old.maximum });
    }
}

/// Bytes that this process's control group may have, by either version; `None` if nothing limits it.
fn cgroup_limit(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let (tree, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            all if all.split(',').any(|one| one == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        // Groups further up limit it as well. In a container, the path may be one of the host's: then only the top is there.
        let groups = Path::new(path.trim_start_matches('/')).ancestors();
        let limits = groups.filter_map(|group| {
            let text = fs::read_to_string(root.join(tree).join(group).join(file)).ok()?;
            text.trim().parse::<u64>().ok()
        });
        limits.min()
    });
    // Version 1 writes a number that no machine has where there is no limit.
    limits.min().filter(|&limit| limit < 1 << 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_all_groups_counts() {
        let limit = |groups: &str, files: &[(&str, &str)]| {
            let root = tempfile::tempdir().unwrap();
            for (path, text) in files.iter().chain(&[("proc/self/cgroup", groups)]) {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            cgroup_limit(root.path())
        };
        let v2 = [("sys/fs/cgroup/a/b/memory.max", "max\n"), ("sys/fs/cgroup/a/memory.max", "31457280\n")];
        assert_eq!(limit("0::/a/b\n", &v2), Some(30 << 20));
        let v1 = [
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "52428800\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(limit("5:cpu:/y\n4:memory:/x\n0::/\n", &v1), Some(50 << 20));
        assert_eq!(limit("4:memory:/\n", &v1), None);
        assert_eq!(limit("0::/none\n", &[]), None);
    }
}
