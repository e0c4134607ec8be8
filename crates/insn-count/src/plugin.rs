//! QEMU's side: its plugin interface, version 1, which QEMU 4.2 to 8.2 offer, and the callbacks.
//!
//! Source: QEMU, `include/qemu/qemu-plugin.h` of 7.2.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::OpenOptions;
use std::sync::OnceLock;

use pagefold_qemu::Counters;

use crate::repeat::is_repeated;

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
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, callback: unsafe extern "C" fn(u64, *mut Block));
    fn qemu_plugin_register_vcpu_tb_exec_cb(
        block: *mut Block,
        callback: unsafe extern "C" fn(c_uint, *mut c_void),
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(block: *const Block) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const Block, at: usize) -> *mut Instruction;
    fn qemu_plugin_insn_data(instruction: *const Instruction) -> *const c_void;
    fn qemu_plugin_insn_size(instruction: *const Instruction) -> usize;
}

/// The interface's version that we were written for; QEMU refuses us if it is none of its own.
// SAFETY: no other symbol of the process has this name: QEMU looks it up in each plugin.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 1;

static COUNTERS: OnceLock<Counters> = OnceLock::new();

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
                eprintln!("pagefold-insn-count: it is loaded already");
                return -1;
            }
            // SAFETY: `id` is ours, and the callback has the type that QEMU asks for.
            unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, translated) };
            0
        }
        Err(error) => {
            eprintln!("pagefold-insn-count: {error}");
            -1
        }
    }
}

fn open<'a>(info: &Info, mut arguments: impl Iterator<Item = &'a CStr>) -> Result<Counters, String> {
    // SAFETY: QEMU's promise: a string that lives as long as `info`.
    let target = unsafe { CStr::from_ptr(info.target_name) };
    if target != c"x86_64" || !info.system_emulation {
        return Err(format!("counts x86_64 machines only, not {}", target.to_string_lossy()));
    }
    let (Some(argument), None) = (arguments.next(), arguments.next()) else {
        return Err("takes one argument: counters=<their file>".to_owned());
    };
    let argument = argument.to_string_lossy();
    let path = argument.strip_prefix("counters=").ok_or(format!("unknown argument '{argument}'"))?;
    let file = OpenOptions::new().read(true).write(true).open(path);
    let counters = file.and_then(|file| Counters::map(&file)).map_err(|error| format!("{path}: {error}"))?;
    match usize::try_from(info.system.max_vcpus) {
        Ok(cpus) if cpus <= counters.cpus() => Ok(counters),
        _ => Err(format!("{path}: counters of {} CPUs, not {}", counters.cpus(), info.system.max_vcpus)),
    }
}

/// QEMU calls this for each block that it translates.
///
/// # Safety
/// QEMU's promise: `block` is valid during the call.
unsafe extern "C" fn translated(_id: u64, block: *mut Block) {
    // SAFETY: QEMU's promise.
    let instructions = unsafe { qemu_plugin_tb_n_insns(block) };
    let repeated = (0..instructions).filter(|&at| {
        // SAFETY: `at` is below the number of instructions, and what comes back is valid during this call, as are its bytes,
        // as many as its size.
        let bytes = unsafe {
            let instruction = qemu_plugin_tb_get_insn(block, at);
            let data = qemu_plugin_insn_data(instruction).cast::<u8>();
            std::slice::from_raw_parts(data, qemu_plugin_insn_size(instruction))
        };
        is_repeated(bytes)
    });
    let data = pack(instructions, repeated.count());
    // SAFETY: QEMU's promise of `block`; the callback takes what it is given here for a number.
    unsafe { qemu_plugin_register_vcpu_tb_exec_cb(block, executed, NO_REGISTERS, data) };
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
