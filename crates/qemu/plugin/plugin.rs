//! QEMU's side: its plugin interface, version 1, which QEMU 4.2 to 8.2 offer, and the callbacks. With the feature `newer-plugin` it is
//! version 7, which QEMU 11.1 offers; of what is used here, the callback of a translation and the way to an instruction's bytes
//! differ.
//!
//! Source: QEMU, `include/qemu/qemu-plugin.h` of 7.2, and `include/plugins/qemu-plugin.h` of 11.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::OpenOptions;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pagefold_qemu::{InstructionCounters, is_repeated};

/// `qemu_info_t`.
#[repr(C)]
struct Info {
    target_name: *const c_char,
    version: Versions,
    system_emulation: bool,
    system: System,
}

#[repr(C)]
struct Versions {
    min: c_int,
    cur: c_int,
}

#[repr(C)]
struct System {
    smp_vcpus: c_int,
    max_vcpus: c_int,
}

/// `struct qemu_plugin_tb`: a block while it is translated.
#[repr(C)]
struct Block {
    _opaque: [u8; 0],
}

/// `struct qemu_plugin_insn`: an instruction of it.
#[repr(C)]
struct Instruction {
    _opaque: [u8; 0],
}

/// `QEMU_PLUGIN_CB_NO_REGS`: the callback looks at no register.
const NO_REGISTERS: c_int = 0;

unsafe extern "C" {
    #[cfg(not(feature = "newer-plugin"))]
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, callback: unsafe extern "C" fn(u64, *mut Block));
    #[cfg(feature = "newer-plugin")]
    fn qemu_plugin_register_vcpu_tb_trans_cb(
        id: u64,
        callback: unsafe extern "C" fn(*mut Block, *mut c_void),
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_tb_exec_cb(
        block: *mut Block,
        callback: unsafe extern "C" fn(c_uint, *mut c_void),
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const Block, at: usize) -> *mut Instruction;
    #[cfg(not(feature = "newer-plugin"))]
    fn qemu_plugin_insn_data(instruction: *const Instruction) -> *const c_void;
    /// Copies at most `len` bytes; returns how many.
    #[cfg(feature = "newer-plugin")]
    fn qemu_plugin_insn_data(instruction: *const Instruction, to: *mut c_void, len: usize) -> usize;
    #[cfg(not(feature = "newer-plugin"))]
    fn qemu_plugin_insn_size(instruction: *const Instruction) -> usize;
}

/// The interface's version that we were written for; QEMU refuses us if it is none of its own.
// SAFETY: no other symbol of the process has this name: QEMU looks it up in each plugin.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = if cfg!(feature = "newer-plugin") { 7 } else { 1 };

/// Whether instructions may be x86's repeated ones. Relaxed: noted before anything is translated.
static HAS_REPETITIONS: AtomicBool = AtomicBool::new(false);

static COUNTERS: OnceLock<InstructionCounters> = OnceLock::new();

/// QEMU calls this once, before there is a machine. The one argument is `counters=` and their file.
///
/// # Safety
/// QEMU's promise: `info` points to its `qemu_info_t`, and `argv` to `argc` strings.
// SAFETY: as of the version's name.
#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    info: *const Info,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    // SAFETY: QEMU's promise: `info` is valid during this call.
    let info = unsafe { &*info };
    // SAFETY: QEMU's promise: that many strings, or none and perhaps no pointer.
    let arguments =
        (0..usize::try_from(argc).unwrap_or(0)).map(|at| unsafe { CStr::from_ptr(*argv.add(at)) });
    match open(info, arguments) {
        Ok(counters) => {
            if COUNTERS.set(counters).is_err() {
                eprintln!("insn_count: it is loaded already");
                return -1;
            }
            // SAFETY: `id` is ours, and the callback has the type that QEMU asks for.
            #[cfg(not(feature = "newer-plugin"))]
            unsafe {
                qemu_plugin_register_vcpu_tb_trans_cb(id, translated)
            };
            // SAFETY: the same; nothing is done with the pointer.
            #[cfg(feature = "newer-plugin")]
            unsafe {
                qemu_plugin_register_vcpu_tb_trans_cb(id, translated_newer, std::ptr::null_mut())
            };
            0
        }
        Err(error) => {
            eprintln!("insn_count: {error}");
            -1
        }
    }
}

fn open<'a>(
    info: &Info,
    mut arguments: impl Iterator<Item = &'a CStr>,
) -> Result<InstructionCounters, String> {
    // SAFETY: QEMU's promise: a string that lives as long as `info`.
    let target = unsafe { CStr::from_ptr(info.target_name) };
    let has_repetitions = target == c"x86_64";
    if !(has_repetitions || target == c"aarch64") || !info.system_emulation {
        return Err(format!("counts machines of x86_64 and aarch64, not {}", target.to_string_lossy()));
    }
    HAS_REPETITIONS.store(has_repetitions, Ordering::Relaxed);
    let (Some(argument), None) = (arguments.next(), arguments.next()) else {
        return Err("takes one argument: counters=<their file>".to_owned());
    };
    let argument = argument.to_string_lossy();
    let path = argument.strip_prefix("counters=").ok_or(format!("unknown argument '{argument}'"))?;
    let file = OpenOptions::new().read(true).write(true).open(path);
    let counters =
        file.and_then(|file| InstructionCounters::map(&file)).map_err(|error| format!("{path}: {error}"))?;
    match usize::try_from(info.system.max_vcpus) {
        Ok(cpus) if cpus <= counters.cpus() => Ok(counters),
        _ => Err(format!("{path}: counters of {} CPUs, not {}", counters.cpus(), info.system.max_vcpus)),
    }
}

/// As [`translated`], as newer QEMU calls it.
///
/// # Safety
/// As there.
#[cfg(feature = "newer-plugin")]
unsafe extern "C" fn translated_newer(block: *mut Block, _data: *mut c_void) {
    // SAFETY: QEMU's promise.
    unsafe { translated(0, block) }
}

/// QEMU calls this for each block that it translates.
///
/// # Safety
/// QEMU's promise: `block` is valid during the call.
unsafe extern "C" fn translated(_id: u64, block: *mut Block) {
    // SAFETY: QEMU's promise.
    let instructions = unsafe { qemu_plugin_tb_n_insns(block) };
    let looked_at = if HAS_REPETITIONS.load(Ordering::Relaxed) { instructions } else { 0 };
    let repeated = (0..looked_at).filter(|&at| {
        // SAFETY: `at` is below the number of instructions, and what comes back is valid during this call.
        let instruction = unsafe { qemu_plugin_tb_get_insn(block, at) };
        is_repeated(bytes(instruction, &mut [0; LONGEST]))
    });
    let data = pack(instructions, repeated.count());
    // SAFETY: QEMU's promise of `block`; the callback takes what it is given here for a number.
    unsafe { qemu_plugin_register_vcpu_tb_exec_cb(block, executed, NO_REGISTERS, data) };
}

/// The most bytes of an instruction of x86.
const LONGEST: usize = 15;

/// The bytes of an instruction that is valid.
#[cfg(feature = "newer-plugin")]
fn bytes(instruction: *const Instruction, room: &mut [u8; LONGEST]) -> &[u8] {
    // SAFETY: the caller's promise; QEMU writes at most as many bytes as there is room for.
    let len = unsafe { qemu_plugin_insn_data(instruction, room.as_mut_ptr().cast(), room.len()) };
    &room[..len.min(LONGEST)]
}

/// The bytes of an instruction that is valid.
#[cfg(not(feature = "newer-plugin"))]
fn bytes(instruction: *const Instruction, room: &mut [u8; LONGEST]) -> &[u8] {
    // SAFETY: the caller's promise; an instruction has as many bytes as its size, and they are valid during this call.
    let bytes = unsafe {
        let data = qemu_plugin_insn_data(instruction).cast::<u8>();
        std::slice::from_raw_parts(data, qemu_plugin_insn_size(instruction))
    };
    let len = bytes.len().min(LONGEST);
    room[..len].copy_from_slice(&bytes[..len]);
    &room[..len]
}

/// QEMU calls this when a CPU begins a block.
extern "C" fn executed(cpu: c_uint, data: *mut c_void) {
    let (instructions, repetitions) = unpack(data);
    if let Some(counters) = COUNTERS.get() {
        counters.add(cpu as usize, instructions, repetitions);
    }
}

/// A block's two numbers, of at most 512 instructions (QEMU's `TCG_MAX_INSNS`), in what QEMU keeps for us as a pointer:
/// plain instructions below, repeated ones above.
fn pack(instructions: usize, repeated: usize) -> *mut c_void {
    std::ptr::without_provenance_mut((instructions - repeated) | repeated << 32)
}

fn unpack(data: *mut c_void) -> (u64, u64) {
    let data = data.addr() as u64;
    (data & u64::from(u32::MAX), data >> 32)
}
