//! Pages without `KPF_MMAP` have a map count of zero: what spares the scan most of `/proc/kpagecount`.

use pagefold_lab::{Kernel, MIB};
use pagefold_machine::flags::MMAP;

use crate::guest;

pub fn are_zero(kernel: &Kernel) {
    let mut guest = guest::builder(kernel).boot().unwrap();
    guest::resize(&mut guest, 64 * MIB);
    // Pages of all sorts: files, shared memory, huge pages, processes.
    guest.run("mkdir /tmp/files; mount -t tmpfs files /tmp/files; cp /bin/pagefold /tmp/files/").unwrap();
    guest.run("echo 16 > /proc/sys/vm/nr_hugepages; (sleep 1000 & sleep 1000 &) >/dev/null").unwrap();
    // Twice the flags: what changes in between is not held against the kernel.
    guest
        .run("cd /tmp; for f in flags count flags; do cat /proc/kpage$f > $f.$(ls $f.* | wc -l); done")
        .unwrap();
    let mut words = |name: &str| -> Vec<u64> {
        let bytes = guest.run_bytes(&format!("cat /tmp/{name}")).unwrap();
        bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect()
    };
    let (before, counts, after) = (words("flags.0"), words("count.0"), words("flags.1"));
    assert!(counts.len() > 1 << 18, "{} words", counts.len());
    let steady = before.iter().zip(&after).zip(&counts).filter(|((before, after), _)| before == after);
    let (mapped, others): (Vec<_>, Vec<_>) = steady.partition(|((flags, _), _)| **flags & MMAP != 0);
    assert!(mapped.len() > 100 && mapped.iter().any(|(_, count)| **count > 1), "{} mapped", mapped.len());
    let odd: Vec<_> = others.into_iter().filter(|(_, count)| **count != 0).collect();
    assert!(odd.is_empty(), "flags before and after, and count: {odd:x?}");
}
