//! `pagefold boot`: the guest's kernel in QEMU, and what becomes of its memory.

mod arch;
mod args;
mod model;
mod pages;
mod play;
mod print;
mod script;
mod step;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use arch::ArchArg;
pub use args::BootArgs;
use args::UNIT;
use indicatif::ProgressBar;
use pagefold_boot::{BUILD, Ending, Guest, KernelKind, Lost, VARIABLE, find_kernel_of};
use pagefold_boot_protocol::{Hello, Request};
use pagefold_machine::host::Counters;
use pagefold_qemu::{NumaNode, QemuBuilder, VirtioMem};

pub use self::model::BootOutcome;
use self::model::{BootRow, SCHEMA};
use self::play::Player;
use self::script::Script;
use self::step::{BootStep, HELP, Wishes};
use crate::exit::{USAGE, usage};
use crate::interrupt::interrupted;
use crate::place::Place;
use crate::source::Found;
use crate::stderr::say;
use crate::{deliver, map, snapshot};

pub fn run(args: &BootArgs) -> Result<ExitCode> {
    // What is wrong with an argument is said before anything is started.
    let place = args.output.snapshot.as_deref();
    let place = place.map(|path| Place::private(path, args.output.force)).transpose()?;
    let sizes = || args.course.resize.iter().try_for_each(|wishes| args.machine.check(wishes));
    let wrong =
        args.machine.possible(memory()).and_then(|()| sizes().map_err(|wrong| format!("--resize: {wrong}")));
    wrong.map_err(usage)?;
    let kernel = kernel(args.machine.kernel.as_deref(), args.machine.arch.kind(&args.machine.cpu))?;
    let mut builder =
        QemuBuilder::new().kernel(&kernel).command_line(&args.guest.command_line(&args.course.work));
    builder = machine(args, builder);
    let mut guest = Guest::start(builder, interrupted()).map_err(in_a_line)?;
    let patience = pagefold_boot::PATIENCE * args.machine.cpus.div_ceil(8);
    guest.set_patience(patience.min(Duration::from_secs_f64(args.course.deadline)));
    let mut life = Life { args, kernel, rows: Vec::new(), broken: Vec::new(), found: None, wrong: None };
    let (hello, ending) = life.play(guest)?;
    let outcome = BootOutcome {
        schema: SCHEMA,
        arch: args.machine.arch.name(),
        memory: args.machine.memory,
        cpus: args.machine.cpus,
        protocol: args.guest.protocol_name(),
        descriptors: args.guest.descriptors_name(),
        hello,
        broken: life.rows.iter().flat_map(BootRow::broken).chain(life.broken).collect(),
        rows: life.rows,
        ending,
    };
    let wrong = life.wrong;
    if outcome.ending.is_usage() {
        return Err(usage(format!("the guest: {}", outcome.ending.last_line())));
    }
    let mut out = deliver::stdout();
    if args.output.json {
        deliver::json(&outcome, &mut out)?;
    } else if !args.course.interactive || !outcome.ending.is_in_order() {
        print::outcome(&outcome, &mut out)?;
    }
    if let Some(found) = &life.found {
        if let Some(place) = &place {
            say(snapshot::write(&found.machine, place)?);
        }
        if args.output.map {
            map::show_plainly(found)?;
        }
    }
    if let Some(wrong) = wrong {
        say(wrong);
        return Ok(USAGE.into());
    }
    let is_fine = outcome.ending.is_in_order() && outcome.broken.is_empty();
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Why QEMU did not start, in a line: of what it said the last line, which is the one that says it.
fn in_a_line(lost: Lost) -> anyhow::Error {
    match lost {
        Lost::Qemu(pagefold_qemu::QemuError::Start { source, .. })
            if matches!(*source, pagefold_qemu::QemuError::Interrupted { .. }) =>
        {
            Lost::Interrupted.into()
        }
        Lost::Qemu(pagefold_qemu::QemuError::Start { source, console }) => {
            let said = console.lines().rfind(|line| !line.starts_with("----"));
            match said.filter(|line| !line.is_empty()) {
                Some(line) => anyhow!("QEMU does not start: {line}"),
                None => anyhow!("QEMU does not start: {source}"),
            }
        }
        lost => lost.into(),
    }
}

/// Bytes of memory that this machine has, swap included.
fn memory() -> Option<u64> {
    let counters = Counters::parse(&std::fs::read_to_string("/proc/meminfo").ok()?);
    Some(counters.get("MemTotal")? + counters.get("SwapTotal").unwrap_or(0))
}

/// The kernel to boot.
fn kernel(given: Option<&Path>, kind: KernelKind) -> Result<PathBuf> {
    match given {
        Some(path) if path.is_file() => Ok(path.to_owned()),
        Some(path) => bail!("{}: no such file", path.display()),
        None => match (find_kernel_of(kind), std::env::var_os(VARIABLE)) {
            (Some(path), _) => Ok(path),
            (None, Some(path)) if !path.is_empty() => {
                bail!("{}: no such file ({VARIABLE} names it)", Path::new(&path).display())
            }
            (None, _) => bail!(
                "no guest kernel here: make it with '{BUILD} --install' in Pagefold's sources, or name one with --kernel \
                 or {VARIABLE}"
            ),
        },
    }
}

/// The machine that was asked for: memory and CPUs spread over the nodes that devices name.
fn machine(args: &BootArgs, mut builder: QemuBuilder) -> QemuBuilder {
    let machine = &args.machine;
    builder = builder.arch(machine.arch.arch()).cpu(&machine.cpu);
    if machine.arch == ArchArg::Aarch64 {
        builder = builder.machine(&format!("virt,gic-version={}", machine.gic));
    }
    if let Some(program) = &machine.qemu {
        builder = builder.program(program);
    }
    let nodes = machine.nodes() as u32;
    let share = machine.memory / u64::from(nodes) / UNIT * UNIT;
    // The first node has what the others leave.
    let cpus = machine.cpus / nodes;
    let first = NumaNode {
        memory: machine.memory - share * u64::from(nodes - 1),
        cpus: machine.cpus - cpus * (nodes - 1),
    };
    builder = builder.memory(first.memory).cpus(first.cpus).resets();
    for _ in 1..nodes {
        builder = builder.node(NumaNode { memory: share, cpus });
    }
    for device in &machine.devices {
        builder = builder.virtio_mem(VirtioMem::new(device.size).block(device.block).node(device.node));
    }
    builder
}

/// A guest's life.
struct Life<'a> {
    args: &'a BootArgs,
    kernel: PathBuf,
    rows: Vec<BootRow>,
    /// What is wrong besides what rows say.
    broken: Vec<String>,
    /// The guest's pages, if they were asked for.
    found: Option<Found>,
    /// The line of a script that made no sense, and ended it.
    wrong: Option<String>,
}

impl Life<'_> {
    /// Takes a guest through all that was asked for, to its end.
    fn play(&mut self, mut guest: Guest) -> Result<(Option<Hello>, Ending)> {
        let hello = match guest.greeting() {
            Ok(hello) => hello,
            Err(lost) => return Ok((None, guest.end(&lost).explain(&self.kernel))),
        };
        let mut player = Player {
            guest,
            hello: hello.clone(),
            retries: self.args.course.retries,
            deadline: Duration::from_secs_f64(self.args.course.deadline),
            wrong: None,
        };
        let course = if self.args.course.interactive {
            let mut script = Script::from_stdin()?;
            self.converse(&mut player, &mut script)
        } else {
            self.course(&mut player).map_err(Into::into)
        };
        let course = course.and_then(|()| Ok(self.finish(&mut player)?));
        let ending = match course.map_err(|error| error.downcast::<Lost>()) {
            Ok(()) => player.guest.stop(),
            Err(Ok(lost)) => player.guest.end(&lost),
            Err(Err(error)) => {
                player.guest.stop();
                return Err(error);
            }
        };
        Ok((Some(hello), ending.explain(&self.kernel)))
    }

    /// The steps of the command line.
    fn course(&mut self, player: &mut Player) -> Result<(), Lost> {
        let course = &self.args.course;
        let sizes = if course.resize.is_empty() && !course.is_otherwise_given() {
            // 4 GiB, or as much as the device has; a quarter; nothing.
            let device = self.args.machine.devices.first().copied();
            let (most, unit) = device.map_or((0, 1), |device| (device.size.min(4 << 30), device.block));
            [most, most / 4 / unit * unit, 0].map(|bytes| Wishes(vec![(0, bytes)])).into()
        } else {
            course.resize.clone()
        };
        let mut steps = vec![BootStep::Boot];
        let mut work = (!course.work.is_empty()).then_some(BootStep::Ask(Request::Populate));
        if sizes.is_empty() {
            steps.extend(work.take());
        }
        for wishes in sizes {
            steps.push(BootStep::Resize(wishes));
            steps.extend(work.take());
            if course.touch {
                steps.push(BootStep::Ask(Request::Touch));
            }
        }
        steps.extend(course.cycle.map(|rounds| BootStep::Ask(Request::Cycle(rounds))));
        // What is to break breaks a while after the guest came up: until then it lives.
        let breaks = self.args.guest.breaks.map(|_| course.deadline);
        steps.extend(course.seconds.or(breaks).map(BootStep::Live));
        for step in steps {
            self.step(player, &step)?;
            if player.guest.is_interrupted() {
                return Err(Lost::Interrupted);
            }
        }
        Ok(())
    }

    fn step(&mut self, player: &mut Player, step: &BootStep) -> Result<&BootRow, Lost> {
        let bar = ProgressBar::new_spinner();
        let row = player.step(step, &mut |message| {
            bar.set_message(message);
            bar.tick();
        });
        bar.finish_and_clear();
        self.rows.push(row?);
        Ok(&self.rows[self.rows.len() - 1])
    }

    /// Lines of a script.
    fn converse(&mut self, player: &mut Player, script: &mut Script) -> Result<()> {
        self.step(player, &BootStep::Boot)?;
        if script.is_person() {
            say(format_args!("up; 'help' lists the commands"));
        }
        let talks = !self.args.output.json;
        while let Some(line) = script.next(|| player.guest.look())? {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words[..] {
                ["stop" | "quit" | "exit"] => return Ok(()),
                ["help"] => writeln!(io::stderr(), "{HELP}")?,
                ["report"] => {
                    let row = self.step(player, &BootStep::Live(0.0))?;
                    if talks {
                        print::report(row, &mut deliver::stdout())?;
                    }
                }
                ["audit"] => match player.audit()? {
                    None if talks => writeln!(deliver::stdout(), "audit: every promise holds")?,
                    None => {}
                    Some(violation) => self.broken.push(format!("audit: {violation}")),
                },
                ["map"] => {
                    let found = self.pages(player)?;
                    if talks {
                        map::show_plainly(&found)?;
                    }
                }
                ["snapshot", file] => {
                    let written = match Place::private(Path::new(file), false) {
                        Ok(place) => snapshot::write(&self.pages(player)?.machine, &place),
                        Err(error) => Err(error),
                    };
                    match written {
                        Ok(what) => say(what),
                        Err(error) if script.is_person() => say(format_args!("{error:#}")),
                        Err(error) => self.broken.push(format!("{error:#}")),
                    }
                }
                _ => match BootStep::parse(&line).and_then(|step| self.checked(step)) {
                    Ok(step) => {
                        let row = self.step(player, &step)?;
                        if talks {
                            print::row(row, &mut deliver::stdout())?;
                        }
                    }
                    // A person tries again; a script that is wrong ends, with what it has done so far.
                    Err(wrong) if script.is_person() => say(wrong),
                    Err(wrong) => {
                        self.wrong = Some(wrong);
                        return Ok(());
                    }
                },
            }
        }
        Ok(())
    }

    /// A step that this machine can make.
    fn checked(&self, step: BootStep) -> Result<BootStep, String> {
        match &step {
            BootStep::Resize(wishes) => self.args.machine.check(wishes)?,
            BootStep::Ask(Request::RestartDriver(restart)) => {
                self.args.machine.check(&Wishes(vec![(restart.device as usize, 0)]))?
            }
            _ => {}
        }
        Ok(step)
    }

    /// What is looked at in the end, whatever the course was.
    fn finish(&mut self, player: &mut Player) -> Result<(), Lost> {
        if let Some(violation) = player.audit()? {
            self.broken.push(format!("audit: {violation}"));
        }
        if let Some(what) = self.args.guest.breaks {
            self.broken.push(format!("--break: the guest has survived {what:?}"));
        }
        if self.args.output.snapshot.is_some() || self.args.output.map {
            self.found = Some(self.pages(player)?);
        }
        Ok(())
    }

    fn pages(&self, player: &mut Player) -> Result<Found, Lost> {
        let (runs, report) = player.pages()?;
        let note = format!("a Pagefold guest with {} CPUs", player.hello.cpus);
        let own = player.hello.kernel / 4096;
        Ok(Found { machine: pages::machine(&runs, own, &report, note), origin: "the guest".into() })
    }
}
