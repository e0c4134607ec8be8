//! What a Linux machine's pages are.
//!
//! * [`live`] reads this machine: where its memory is (`/proc/iomem`, `/proc/zoneinfo`), and every page's flags and map
//!   count (`/proc/kpageflags`, `/proc/kpagecount`).
//! * [`snapshot`] writes that to a file, and reads it back.
//! * [`Host`] is what a host says of itself in small files that everyone may read: zones, blocks, pools, counters.
//! * [`Machine`] is either, in memory: a layout, and runs of pages that are alike.
//! * [`Tally`] sums a machine up, [`folding`] says what folding would leave of its descriptors, and [`cost`] is the
//!   arithmetic of descriptors.
//! * [`kernel`] says what a kernel can do, by its name alone.
//! * [`owners`] says which processes have pages mapped, and who allocated them.
//! * [`PageState`] is what a page is used for, and [`Machine::extents`] turns runs of flags into folios with states.

pub mod cost;
mod extents;
pub mod fake_heads;
pub mod flags;
pub mod folding;
pub mod geometry;
pub mod host;
pub mod kernel;
pub mod layout;
pub mod live;
mod machine;
pub mod owners;
pub mod page_types;
mod reading;
mod scan;
pub mod snapshot;
mod state;
pub mod tally;

pub use extents::Extent;
pub use flags::Flags;
pub use host::Host;
pub use layout::{MemoryRange, ZoneRecord};
pub use machine::{Header, Machine, Run, deferred_pages, described_pages};
pub use state::PageState;
pub use tally::Tally;
