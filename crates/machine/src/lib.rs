//! What a Linux machine's pages are.
//!
//! * [`live`] reads this machine: where its memory is (`/proc/iomem`, `/proc/zoneinfo`), and every page's flags and map
//!   count (`/proc/kpageflags`, `/proc/kpagecount`).
//! * [`snapshot`] writes that to a file, and reads it back.
//! * [`Machine`] is either, in memory: a layout, and runs of pages that are alike.
//! * [`PageState`] is what a page is used for, and [`Machine::extents`] turns runs of flags into folios with states.

pub mod flags;
pub mod layout;
pub mod live;
mod machine;
pub mod snapshot;
mod state;

pub use flags::Flags;
pub use layout::{MemoryRange, Zone};
pub use machine::{Extent, Header, Machine, PAGES_PER_SECTION, Run};
pub use state::PageState;
