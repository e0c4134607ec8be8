//! Exceptions: none is expected, so each ends the machine with a dump that says what it was.

use core::fmt;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use pagefold_boot_protocol::GuestExit;
use pagefold_engine::platform::TableKind;
use spin::Once;

use crate::arch::interrupts::Frame;
use crate::layout::{PAGE, STACK_STRIDE, STACKS};
use crate::{arch, console, cpu, dump, tables};

/// An access that faulted.
pub struct Access {
    /// Where.
    pub address: u64,
    /// Whether it was to write.
    pub is_write: bool,
}

/// Somebody who can say what a page of the memory map is.
pub trait Describe: Sync {
    /// What the map page of that number is.
    fn map_page(&self, map_page: u64) -> MapPageFacts;
}

/// What a map page is.
pub struct MapPageFacts {
    /// The pages that it describes.
    pub pages: Range<u64>,
    /// Its class, in words.
    pub class: &'static str,
    /// Whether memory is behind it.
    pub is_backed: bool,
}

/// Who that is, once there is an engine.
pub static DESCRIBE: Once<&'static dyn Describe> = Once::new();

/// Whether somebody ends the machine already.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Stops all other processors, says what happened and how each stood, and ends the machine.
pub fn end(exit: GuestExit, frame: Option<&Frame>, what: fmt::Arguments<'_>) -> ! {
    if ENDING.swap(true, Ordering::AcqRel) {
        // Somebody else does; its interrupt will find us here.
        arch::halt();
    }
    let me = cpu::this().number;
    console::print_anyway(format_args!("\n{}: {what}\n", exit.meaning()));
    if let Some(frame) = frame {
        dump::processor(me, frame);
    }
    dump::stop_others();
    arch::exit(exit)
}

/// A double fault: mostly a stack that ran out while it was needed for an exception.
pub fn double_fault(frame: &Frame) -> ! {
    end(GuestExit::DoubleFault, Some(frame), format_args!("on processor {}", cpu::this().number))
}

/// Any other exception.
pub fn exception(frame: &Frame, what: fmt::Arguments<'_>) -> ! {
    let number = cpu::this().number;
    end(GuestExit::Exception, Some(frame), format_args!("{what}, on processor {number}"))
}

/// A page fault: in the engine's tables, on a stack's guard page, or anywhere.
pub fn page_fault(frame: &Frame, access: &Access) -> ! {
    let (&Access { address, is_write }, number) = (access, cpu::this().number);
    let did = if is_write { "write" } else { "read" };
    if (STACKS..STACKS + STACK_STRIDE * 1024).contains(&address) {
        end(
            GuestExit::StackOverflow,
            Some(frame),
            format_args!("{did} at {address:#x}, below the stack, on processor {number}"),
        );
    }
    if let Some((kind, offset)) = tables::find(address) {
        let exit = if is_write { GuestExit::StrayWrite } else { GuestExit::StrayRead };
        if kind == TableKind::Map {
            let map_page = offset / PAGE;
            let unknown = MapPageFacts { pages: 0..0, class: "unknown", is_backed: false };
            let facts = DESCRIBE.get().map_or(unknown, |engine| engine.map_page(map_page));
            let MapPageFacts { pages, class, is_backed } = facts;
            // Every page has as many bytes of it.
            let pfn = pages.start + offset % PAGE * (pages.end - pages.start) / PAGE;
            let backed = if is_backed { ", not yet taken away" } else { "" };
            end(
                exit,
                Some(frame),
                format_args!(
                    "{did} at {address:#x}: pfn {pfn:#x}, map page {map_page:#x}, class {class}{backed}, on processor \
                     {number}"
                ),
            );
        }
        end(
            exit,
            Some(frame),
            format_args!(
                "{did} at {address:#x}: byte {offset:#x} of the table {kind:?}, on processor {number}"
            ),
        );
    }
    end(
        GuestExit::Exception,
        Some(frame),
        format_args!("page fault: {did} at {address:#x}, on processor {number}"),
    )
}

/// An interrupt that cannot be masked: another processor ends the machine, or somebody outside pressed the button.
pub fn stopped(frame: &Frame) -> ! {
    if !dump::is_stopping() {
        let number = cpu::this().number;
        end(GuestExit::Hang, Some(frame), format_args!("interrupted from outside, on processor {number}"));
    }
    dump::stop(frame)
}
