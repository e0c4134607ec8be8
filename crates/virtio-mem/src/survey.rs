//! Finding out what is plugged: at the probe of a driver, and whenever the device's count is not the driver's.
//!
//! The device is asked about ranges of units, one range a step, which grow while nothing is plugged there. A unit with
//! something plugged is put in doubt and settled by the next steps. Until the end of the survey no memory of the device
//! goes online or offline.

use core::ops::Range;

use pagefold_engine::Platform;
use pagefold_virtio_mem_spec::{PlugState, RequestType};

use crate::context::Context;
use crate::geometry::Geometry;
use crate::stop::Result;
use crate::units::Units;

/// What is left to find out.
#[derive(Clone, Copy)]
pub(crate) enum Survey {
    /// Everything is to be unplugged.
    UnplugAll,
    /// The device is to be asked about the units from `next` on, the next `span` of them at once.
    Units { next: u64, span: u64 },
    /// What is plugged outside of whole units is to be unplugged.
    Strays,
}

/// Device blocks asked about at once. A request names at most 65,535, and a step should not make many.
const MOST_BLOCKS: u64 = 16 * u16::MAX as u64;

/// Units that a few requests can ask about.
fn widest_span(geometry: &Geometry) -> u64 {
    (MOST_BLOCKS * geometry.device_block / geometry.unit()).max(1)
}

impl Survey {
    /// A survey of all units.
    pub(crate) fn of_all(geometry: &Geometry) -> Self {
        Survey::Units { next: 0, span: widest_span(geometry) }
    }

    /// Goes on with a survey. What is left then.
    pub(crate) fn go_on(
        self,
        cx: &mut Context<'_, '_, impl Platform>,
        units: &Units,
    ) -> Result<Option<Survey>> {
        match self {
            Survey::UnplugAll => cx.link.unplug_all()?,
            Survey::Units { next, span } => return survey_units(cx, units, next, span).map(Some),
            Survey::Strays => unplug_strays(cx, units)?,
        }
        Ok(None)
    }
}

fn survey_units(
    cx: &mut Context<'_, '_, impl Platform>,
    units: &Units,
    next: u64,
    span: u64,
) -> Result<Survey> {
    let geometry = cx.link.geometry;
    // The device cannot be asked about others.
    let end = geometry.usable_units(cx.link.limits.usable);
    if next >= end {
        return Ok(Survey::Strays);
    }
    let mut range = next..next.saturating_add(span).min(end);
    loop {
        let len = range.end - range.start;
        if !is_known(cx, units, range.clone())
            && cx.link.state(geometry.unit_bytes(range.clone()))? == PlugState::Unplugged
        {
            let span = len.saturating_mul(2).min(widest_span(&geometry));
            return Ok(Survey::Units { next: range.end, span });
        }
        if len == 1 {
            // The next steps settle it.
            cx.gate.doubt(range.clone());
            return Ok(Survey::Units { next: range.end, span: 1 });
        }
        range.end = range.start.midpoint(range.end);
    }
}

/// Whether one of `range` is used by the driver, or added to the machine by an earlier one.
fn is_known(cx: &Context<'_, '_, impl Platform>, units: &Units, mut range: Range<u64>) -> bool {
    range.any(|unit| units.is_used(unit) || cx.added_blocks(unit).next().is_some())
}

/// Whether an earlier driver has added memory to a unit of which the device could not be asked: it was not usable.
pub(crate) fn has_unreached(cx: &Context<'_, '_, impl Platform>, units: &Units) -> bool {
    let mut others = (0..cx.link.geometry.units).filter(|&unit| !units.is_used(unit));
    others.any(|unit| cx.added_blocks(unit).next().is_some())
}

/// Unplugs what lies outside of whole units, which is of no use: but for what is in the machine all the same, since an earlier
/// driver had other units, or more was usable then.
fn unplug_strays(cx: &mut Context<'_, '_, impl Platform>, units: &Units) -> Result {
    let (geometry, usable) = (cx.link.geometry, cx.link.limits.usable);
    let start = geometry.addr;
    let in_units = geometry.usable_units(usable).max(units.used());
    let end = geometry.unit_bytes(0..in_units).end;
    let before = start..geometry.start.min(start + usable);
    let behind = end.max(start)..start + usable;
    for mut stray in [before, behind] {
        while let Some(part) = geometry.first_out_of_machine(cx.hotplug, stray.clone()) {
            stray.start = part.end;
            if cx.link.state(part.clone())? != PlugState::Unplugged {
                cx.link.change_rest(RequestType::Unplug, part)?;
            }
        }
    }
    Ok(())
}
