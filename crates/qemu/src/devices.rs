//! NUMA nodes and virtio-mem devices.

use crate::MIB;

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumaNode {
    /// Bytes of memory at boot; may be none, if the machine has other nodes with some.
    pub memory: u64,
    /// CPUs; may be none.
    pub cpus: u32,
}

/// A virtio-mem device: `vmem0`, `vmem1`, ... in the order they are added.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct VirtioMem {
    pub(crate) size: u64,
    pub(crate) block: u64,
    pub(crate) node: usize,
    pub(crate) requested: u64,
}

impl VirtioMem {
    /// A device with room for `size` bytes, in blocks of 2 MiB, on node 0, none of which the guest is asked to plug.
    pub fn new(size: u64) -> Self {
        VirtioMem { size, block: 2 * MIB, node: 0, requested: 0 }
    }

    /// Bytes of a block, the least that is plugged: a power of two, 1 MiB or more (2 MiB).
    pub fn block(mut self, bytes: u64) -> Self {
        self.block = bytes;
        self
    }

    /// The NUMA node it says it is on (0).
    pub fn node(mut self, node: usize) -> Self {
        self.node = node;
        self
    }

    /// Bytes that the guest is asked to plug when it boots (none).
    pub fn requested(mut self, bytes: u64) -> Self {
        self.requested = bytes;
        self
    }
}
