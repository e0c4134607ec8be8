//! Where descriptors of a device's memory would lie, for people.

use std::io::{self, Write};

use super::device::{DeviceAnswer, DeviceWay, Lies};
use super::hotplug_print::warn;
use super::print::{abilities, range, told};
use crate::lines::{text_width, wrap};
use crate::table::{add, fit, table, words};
use pagefold_picture::amount::Units;

pub fn print(answer: &DeviceAnswer, units: Units, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "{}\n", wrap(&verdict(answer, units), text_width()))?;
    let name = answer.device.as_deref().unwrap_or("sizes alone");
    let node = answer.node.map_or_else(|| "a node that nothing tells".into(), |node| format!("node {node}"));
    writeln!(
        to,
        "device    {name}: {}, {node}; memory blocks of {}\n\
         machine   {}: {}\n          {}\n\
         goes to   {} ({}), if it is brought online\n\
         later     {} of page tables, if all that goes to ZONE_MOVABLE is mapped\n",
        units.words(answer.size),
        units.size(answer.block),
        answer.origin,
        told(&answer.free, "free in kernel zones", units),
        told(&answer.reserve, "must stay", units),
        answer.zone,
        answer.zone_from,
        units.words(answer.page_tables.bytes),
    )?;
    if let Some(kernel) = &answer.kernel {
        abilities(kernel, units, to)?;
    }
    let mut table = table(&["way", "descriptors in", "RAM", "left of the device", "works"]);
    words(&mut table, &[1, 4]);
    for way in &answer.ways {
        let works = match (way.works, way.has) {
            (true, pagefold_machine::kernel::Has::Unknown) => "if it is on",
            (true, _) => "yes",
            (false, _) => "no",
        };
        add(
            &mut table,
            [
                way.name.into(),
                way.lies.name().into(),
                range(&way.ram, units),
                units.show(way.usable),
                works.into(),
            ],
        );
    }
    writeln!(to, "{}", fit(&mut table))?;
    writeln!(to, "All computed.\n")?;
    for way in &answer.ways {
        writeln!(to, "{}: {}", way.name, way.note)?;
    }
    Ok(())
}

fn way_online(answer: &DeviceAnswer, lies: Lies) -> Option<&DeviceWay> {
    answer.ways.iter().find(|way| way.name == lies.online())
}

fn verdict(answer: &DeviceAnswer, units: Units) -> String {
    let device = answer.device.as_deref().unwrap_or("the device");
    let way = way_online(answer, answer.lies);
    let (ram, usable) = way.map_or((0, 0), |way| (way.ram.max, way.usable));
    let size = units.words(answer.size);
    let place = answer.lies.name();
    let mut text = format!(
        "Brought online, descriptors of {device} ({size}) would lie in {place}: {}.",
        answer.lies_from
    )
    .replace("lie in the device", "lie on the device");
    text.push_str(&match (answer.lies, answer.works) {
        (Lies::Ram, true) => format!(" They take {} of RAM, and that is there.", units.words(ram)),
        (Lies::Ram, false) => format!(
            " They take {} of RAM, which is more than can be taken: {} more would have to be free.",
            units.words(ram),
            units.words(ram.saturating_add(answer.reserve.bytes).saturating_sub(answer.free.bytes))
        ),
        (Lies::Device, true) => {
            format!(" It has {} left, and takes {} of RAM.", units.words(usable), units.words(ram))
        }
        (Lies::Device, false) => {
            format!(" Even so it takes {} of RAM, which is more than can be taken.", units.words(ram))
        }
    });
    if let Some(other) = way_online(answer, Lies::Device)
        && answer.lies == Lies::Ram
        && other.works
    {
        text.push_str(&format!(
            " With memmap_on_memory they would lie on the device, which then has {} left.",
            units.words(other.usable)
        ));
    }
    for warning in &answer.warnings {
        text.push(' ');
        text.push_str(&warn(*warning, &answer.online, units));
    }
    text
}
