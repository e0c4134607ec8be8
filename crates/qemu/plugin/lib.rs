//! A plugin for QEMU's emulator (TCG) that counts what the guest executes.
//!
//! It adds to [`InstructionCounters`](pagefold_qemu::InstructionCounters), which the host has mapped too, so that they can be read at any moment
//! without stopping the guest. [`Builder::count_instructions`](pagefold_qemu::Builder::count_instructions) loads it.
//!
//! **What is counted.** Each CPU counts its own, so that several lose nothing. When a CPU begins a block of translated
//! instructions, the whole block is counted. A block that a fault leaves in its middle was thus counted to its end, and
//! what is executed again after the fault is counted again: a run's count is a little high, and differs a little between
//! runs. A repeated string instruction (`rep stosb` and its like) is not an instruction here, but its iterations are
//! repetitions, and one more for its end: they have a counter of their own, since a real CPU moves many bytes in one. On arm64
//! everything is an instruction.
//!
//! CPUs that spin until another one answers execute too. With several, on a host that has fewer to run them, that is much of
//! what is counted, and it does not repeat: counts that are to be compared are those of one CPU.

mod plugin;
