//! The kernel's life: from the first Rust to the loop of each processor.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;

use pagefold_boot_protocol::{DescriptorsChoice, GuestExit, Options, ProtocolChoice};
use pagefold_engine::geometry::MapGeometry;
use pagefold_engine::hotplug::HotplugConfig;
use pagefold_engine::protocol::{Fold, NoGracePeriod};
use pagefold_engine::{Config, Engine, Memdesc, Page64, Pfn};
use pagefold_virtio_mem::Channel as _;
use pagefold_workload::{WorkloadArg, slots};
use spin::Once;

use crate::arch::firmware::{Boot, Firmware};
use crate::arch::{self, interrupts};
use crate::cpu::Cpu;
use crate::crew::{self, Crew};
use crate::devices::{Channel, Devices};
use crate::fault::{DESCRIBE, Describe, MapPageFacts};
use crate::interrupted::Interrupted;
use crate::kernel::Kernel;
use crate::layout::{PAGE, direct, image};
use crate::machine::{self, Choice, GuestPlatform};
use crate::{clock, console, cpu, fault, frames, heap, paging, processors, tables, watchdog};

/// Bytes of heap: this much, and a share of boot memory.
const HEAP: u64 = 2 << 20;
const HEAP_SHARE: u64 = 64;
/// Heap for each folio that a workload may have: its slot in the index, and what the population keeps of it.
const SLOT: u64 = 24;
/// Memory below is left alone: the firmware's, and the trampoline's.
const LOW: u64 = 1 << 20;

static BOOT: Once<Boot> = Once::new();
/// What the other processors are to do, once it is known.
static WORK: Once<&'static (dyn Fn(usize) + Sync)> = Once::new();

/// Ends for a reason that no exception is.
fn refuse(exit: GuestExit, why: core::fmt::Arguments<'_>) -> ! {
    console::print_anyway(format_args!("{}: {why}\n", exit.meaning()));
    arch::exit(exit)
}

/// The first Rust, on the boot stack and the boot page tables; with what the loader handed over.
pub fn start(handed_over: u64) -> ! {
    // Before any lock is taken: that may need what the processor lacks.
    if let Some(why) = arch::unsuitable() {
        let exit = GuestExit::Unsupported;
        console::print_alone(format_args!("{}: {why}\n", exit.meaning()));
        arch::exit(exit);
    }
    clock::start();
    console::init();
    // SAFETY: the boot page tables map what it leads to where it is, and nothing runs but this.
    let Some(boot) = (unsafe { Boot::read(handed_over) }) else {
        refuse(GuestExit::Unsupported, format_args!("the loader says nothing of the machine"));
    };
    let boot = BOOT.call_once(|| boot);
    let Some(own) = boot.memory().iter().find(|range| range.contains(&image()[0])).cloned() else {
        refuse(
            GuestExit::Unsupported,
            format_args!("the loader's memory map does not have the kernel's own memory"),
        );
    };
    // Boot's own: the image, the first frames, the heap. What is behind is the engine's.
    let total: u64 = boot.memory().iter().map(|range| range.end - range.start).sum();
    let frames_end = image()[3] + frames::BOOT * PAGE;
    let heap_end = (frames_end + HEAP + total / HEAP_SHARE).next_multiple_of(PAGE);
    if heap_end > own.end || heap_end > arch::BOOT_MAPPED {
        refuse(GuestExit::Unsupported, format_args!("{} MiB of memory are too little", total >> 20));
    }
    // SAFETY: memory behind the image that nobody uses; the boot page tables have the direct map's first 4 GiB.
    unsafe { frames::add(image()[3]..frames_end) };
    let mapped = core::iter::once(boot.also_mapped()).chain(boot.memory().iter().cloned());
    if paging::init(mapped).is_err() {
        refuse(GuestExit::Unsupported, format_args!("page tables for {} MiB do not fit", total >> 20));
    }
    // SAFETY: memory that nobody uses, in the direct map.
    unsafe { heap::claim(direct(frames_end), (heap_end - frames_end) as usize) };
    machine::KERNEL_MEMORY.store(heap_end - boot.begin(), Ordering::Relaxed);
    machine::BOOT_MEMORY.store(total, Ordering::Relaxed);
    let Some(firmware) = Firmware::read(boot) else {
        refuse(GuestExit::Unsupported, format_args!("the firmware's tables make no sense"));
    };
    console::init_host(&firmware);
    // Each processor has its own stacks, whatever else boot needs.
    let count = firmware.processors.len().clamp(1, cpu::MAX) as u64;
    let stacks_end = heap_end + count * processors::FRAMES * PAGE;
    if stacks_end > own.end {
        let mib = total >> 20;
        refuse(
            GuestExit::Unsupported,
            format_args!("{mib} MiB of memory are too little for {count} processors"),
        );
    }
    // SAFETY: memory behind the heap that nobody uses, in the direct map.
    unsafe { frames::add(heap_end..stacks_end) };
    let heap_end = stacks_end;
    machine::KERNEL_MEMORY.store(heap_end - boot.begin(), Ordering::Relaxed);
    let stack = (|| {
        tables::init()?;
        let cpu = processors::make(0, arch::start::init(&firmware).ok()?).ok()?;
        let stack = cpu.stack.end;
        processors::enter(cpu);
        Some(stack)
    })();
    let Some(stack) = stack else {
        refuse(GuestExit::Unsupported, format_args!("too few frames at boot"));
    };
    let start = Box::leak(Box::new(Start { boot, firmware, heap_end, own_end: own.end }));
    // SAFETY: a fresh stack; the boot stack is left for good.
    unsafe { arch::on_stack(stack, started, start) }
}

/// What boot found out.
struct Start {
    boot: &'static Boot,
    firmware: Firmware,
    heap_end: u64,
    own_end: u64,
}

/// On a stack of its own.
extern "C" fn started(start: &'static mut Start) -> ! {
    arch::start::start_clock();
    interrupts::enable();
    let options = match start.boot.command_line().parse::<Options>() {
        Ok(options) => options,
        Err(error) => refuse(GuestExit::Usage, format_args!("{error}")),
    };
    if processors::start_others(&start.firmware.processors).is_err() {
        refuse(
            GuestExit::Unsupported,
            format_args!("too few frames for {} processors", start.firmware.processors.len()),
        );
    }
    watchdog::set_seconds(options.watchdog);
    if let Some(choice) = options.barrier {
        machine::choose_barrier(choice);
    }
    let workloads = match workloads(start, &options) {
        Ok(workloads) => workloads,
        Err((exit, why)) => refuse(exit, format_args!("{why}")),
    };
    let live = match (options.protocol, options.descriptors) {
        (ProtocolChoice::Fold, DescriptorsChoice::Page) => live::<(Interrupted<Fold>, Page64)>,
        (ProtocolChoice::Fold, DescriptorsChoice::Memdesc) => live::<(Interrupted<Fold>, Memdesc)>,
        (ProtocolChoice::NoGracePeriod, DescriptorsChoice::Page) => {
            live::<(Interrupted<NoGracePeriod>, Page64)>
        }
        (ProtocolChoice::NoGracePeriod, DescriptorsChoice::Memdesc) => {
            live::<(Interrupted<NoGracePeriod>, Memdesc)>
        }
    };
    live(start, options, workloads)
}

/// The workloads of the command line, and the heap that they need, out of what would be the engine's.
fn workloads(start: &mut Start, options: &Options) -> Result<Vec<WorkloadArg>, (GuestExit, String)> {
    let read = |text: &String| {
        WorkloadArg::parse(text).map_err(|error| (GuestExit::Usage, format!("work={text}: {error}")))
    };
    let workloads = options.work.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let plans: Vec<_> = workloads.iter().map(|arg| arg.workload.clone()).collect();
    let bytes = (slots(&plans) as u64).saturating_mul(SLOT).next_multiple_of(PAGE);
    let end = start.heap_end.saturating_add(bytes);
    if end > start.own_end {
        let mib = bytes >> 20;
        return Err((
            GuestExit::Unsupported,
            format!("{mib} MiB to keep account of the workloads' folios are not there"),
        ));
    }
    if bytes > 0 {
        // SAFETY: boot memory behind the heap that the engine has not been given, in the direct map.
        unsafe { heap::claim(direct(start.heap_end), bytes as usize) };
        start.heap_end = end;
        machine::KERNEL_MEMORY.store(end - start.boot.begin(), Ordering::Relaxed);
    }
    Ok(workloads)
}

/// The memory that the engine gets, in pages.
fn engine_memory(start: &Start) -> impl Iterator<Item = Range<u64>> {
    start.boot.memory().iter().filter_map(|range| {
        let from = if range.end == start.own_end { start.heap_end } else { range.start.max(LOW) };
        let pages = from.div_ceil(PAGE)..range.end / PAGE;
        (pages.start < pages.end).then_some(pages)
    })
}

/// With an engine, as it was chosen.
fn live<C: Choice>(start: &'static Start, options: Options, workloads: Vec<WorkloadArg>) -> ! {
    let mut devices = Devices::find(&start.firmware);
    let mut channels: Vec<(usize, Channel, u64)> = Vec::new();
    for place in 0..devices.as_ref().map_or(0, |devices| devices.places.len()) {
        let connected = devices.as_mut().map(|devices| devices.connect(place));
        match connected {
            Some(Ok(mut channel)) => match channel.config() {
                Ok(config) => {
                    let (from, size) = (config.addr.get(), config.region_size.get());
                    let end = from.saturating_add(size);
                    match paging::map_direct(from..end) {
                        Ok(()) => channels.push((place, channel, end)),
                        Err(_) => say!("virtio-mem {place}: its region {from:#x}..{end:#x} cannot be mapped"),
                    }
                }
                Err(error) => say!("virtio-mem {place}: {error}"),
            },
            Some(Err(error)) => say!("virtio-mem {place}: {error}"),
            None => {}
        }
    }
    let ends =
        engine_memory(start).map(|pages| pages.end).chain(channels.iter().map(|(_, _, end)| end / PAGE));
    let config = Config::new(ends.max().unwrap_or(0));
    // SAFETY: `Fold` keeps the promises, also when its walkers are held up. `NoGracePeriod` is here to be seen: what its
    // walkers touch faults, and the fault handler ends the machine with a report.
    let engine = unsafe { Engine::with_rules(GuestPlatform::new(), config) };
    let engine: &'static Engine<GuestPlatform<C>> = match engine {
        Ok(engine) => Box::leak(Box::new(engine)),
        Err(error) => refuse(GuestExit::Unsupported, format_args!("no engine: {error:?}")),
    };
    DESCRIBE.call_once(|| Box::leak(Box::new(Describer(engine))));
    let Ok(mut hotplug) = engine.hotplug(HotplugConfig::default()) else {
        refuse(GuestExit::Unsupported, format_args!("no memory hotplug"));
    };
    for pages in engine_memory(start) {
        let node = start.firmware.node(pages.start * PAGE);
        if let Err(error) = hotplug.boot(pages.clone(), node) {
            say!("boot memory {pages:x?}: {error}");
        }
    }
    machine::top_up(engine);
    let kernel = Kernel::new(
        engine,
        hotplug,
        options,
        workloads,
        devices,
        channels.into_iter().map(|(p, c, _)| (p, c)),
    );
    let kernel = match kernel {
        Ok(kernel) => kernel,
        Err(error) => refuse(GuestExit::Unsupported, format_args!("{error}")),
    };
    let crew: &'static Crew<C> = kernel.crew();
    let work: &'static (dyn Fn(usize) + Sync) =
        Box::leak(Box::new(move |number| match crew.tasks(number, cpu::count()) {
            Ok(tasks) => crew::run(tasks),
            Err(error) => fault::end(GuestExit::Unsupported, None, format_args!("walkers: {error}")),
        }));
    WORK.call_once(|| work);
    kernel.run()
}

/// A processor that was started, from `boot.s`: on its stack, with interrupts off.
#[unsafe(no_mangle)]
extern "C" fn processor_start(cpu: *mut Cpu) -> ! {
    // SAFETY: made by `start::processor` for this processor alone.
    processors::enter(unsafe { &mut *cpu });
    interrupts::enable();
    loop {
        watchdog::beat();
        match WORK.get() {
            Some(work) => work(cpu::this().number),
            // Till the next tick: the host may have fewer CPUs than there are processors, and the first one has work.
            None => interrupts::wait(),
        }
    }
}

struct Describer<C: Choice>(&'static Engine<GuestPlatform<C>>);

impl<C: Choice> Describe for Describer<C> {
    fn map_page(&self, map_page: u64) -> MapPageFacts {
        let pfn = map_page * C::Descriptors::PAGES_PER_MAP_PAGE;
        let (class, is_backed) = self.0.class(Pfn(pfn));
        MapPageFacts { pages: pfn..pfn + C::Descriptors::PAGES_PER_MAP_PAGE, class: class.name(), is_backed }
    }
}
