//! A guest that runs, and the conversation with it: requests, answers, and what is done about silence.
//!
//! Neither end waits for the other for ever. Requests have a time by which they must be answered; and a thread sends
//! [`PULSE`] all the time, without which the guest ends itself.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use pagefold_boot_protocol::{
    Answer, DeviceStatus, Hello, PULSE, PULSE_SECONDS, PageRun, Report, Request, VERSION, from_line, to_line,
};
use pagefold_qemu::{Qemu, QemuBuilder, Qmp};

use crate::ending::Ending;
use crate::lost::{Lost, nonsense, shortened};

/// The guest answers at once, if it does; but this machine may have other things to do. More than the guest's own
/// watchdog has.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// QEMU does what it is told at once; one that does not by then stands still.
const REACTION: Duration = Duration::from_secs(5);
/// How often an interrupt is looked for.
const GLANCE: Duration = Duration::from_millis(100);
/// QEMU, after the guest has ended; the guest, for its dump.
const GOODBYE: Duration = Duration::from_secs(20);
/// Bytes of an answer, at most: more than the guest ever sends in one.
const LONGEST: usize = 1 << 24;

/// A guest that runs.
pub struct Guest {
    qemu: Qemu,
    port: UnixStream,
    /// What has arrived, and is no whole line yet.
    arrived: Vec<u8>,
    patience: Duration,
    interrupted: Arc<AtomicBool>,
    /// The thread that sends pulses ends when this goes.
    _pulse: Sender<()>,
}

impl Guest {
    /// Starts QEMU. The guest says [`Hello`] when it is up: see [`greeting`](Self::greeting).
    ///
    /// # Errors
    /// There is no QEMU, or it does not like an option.
    pub fn start(builder: QemuBuilder, interrupted: Arc<AtomicBool>) -> Result<Guest, Lost> {
        const PORT: &str = "host";
        let builder = builder.interrupted_by(Arc::clone(&interrupted));
        let mut qemu = builder.serial(PORT).debug_exit().spawn()?;
        let port = qemu.take_port(PORT).ok_or(Lost::Ended)?;
        let timeouts = port.set_read_timeout(Some(GLANCE));
        timeouts.and_then(|()| port.set_write_timeout(Some(REACTION))).map_err(|_| Lost::Ended)?;
        let pulse = pulse(port.try_clone().map_err(|_| Lost::Ended)?).map_err(|_| Lost::Ended)?;
        let patience = PATIENCE;
        Ok(Guest { qemu, port, arrived: Vec::new(), patience, interrupted, _pulse: pulse })
    }

    /// How long the guest may take to say how it stands, and QEMU to do what it is told, from now on ([`PATIENCE`] at
    /// first). Guests with many CPUs take longer: each of them takes part, and the host may have few.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
        self.qemu.qmp().set_patience(patience.min(PATIENCE));
    }

    /// Looks whether there is something to wait for still.
    ///
    /// # Errors
    /// Somebody wants us to stop, or QEMU has ended.
    pub fn look(&mut self) -> Result<(), Lost> {
        if self.is_interrupted() {
            return Err(Lost::Interrupted);
        }
        if self.qemu.has_ended() { Err(Lost::Ended) } else { Ok(()) }
    }

    /// The process.
    pub fn qemu(&mut self) -> &mut Qemu {
        &mut self.qemu
    }

    /// The machine from outside.
    pub fn qmp(&mut self) -> &mut Qmp {
        self.qemu.qmp()
    }

    /// Everything on the console.
    pub fn console(&self) -> String {
        self.qemu.console().text()
    }

    /// Whether somebody wants us to stop.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Waits until it is up. What it said before its end or reset is passed over.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn greeting(&mut self) -> Result<Hello, Lost> {
        // Before it answers, its CPUs are started, one after the other.
        let until = Instant::now() + self.patience.max(PATIENCE) * 2;
        loop {
            let line = self.line("hello", until)?;
            match from_line(&line) {
                Ok(Answer::Hello(hello)) if hello.version == VERSION => return Ok(hello),
                Ok(Answer::Hello(hello)) => return Err(Lost::Version(hello.version)),
                _ => {}
            }
        }
    }

    /// Asks, and waits for the answer as long as that.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn ask(&mut self, request: &Request, within: Duration) -> Result<Answer, Lost> {
        let name = self.send(request)?;
        self.answer(&name, Instant::now() + within)
    }

    /// Where the drivers stand.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn status(&mut self) -> Result<Vec<DeviceStatus>, Lost> {
        match self.ask(&Request::Status, self.patience)? {
            Answer::Status(status) => Ok(status),
            other => Err(nonsense("status", &other)),
        }
    }

    /// What everything costs.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn report(&mut self) -> Result<Report, Lost> {
        match self.ask(&Request::Report, self.patience)? {
            Answer::Report(report) => Ok(report),
            other => Err(nonsense("report", &other)),
        }
    }

    /// All pages.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn pages(&mut self) -> Result<Vec<PageRun>, Lost> {
        let request = self.send(&Request::Pages)?;
        let mut pages = Vec::new();
        loop {
            match self.answer(&request, Instant::now() + self.patience)? {
                Answer::Pages(more) => pages.extend(more),
                Answer::Done => return Ok(pages),
                other => return Err(nonsense(&request, &other)),
            }
        }
    }

    /// Sends a request; its name, for errors.
    fn send(&mut self, request: &Request) -> Result<String, Lost> {
        let name = to_line(request).map_err(|_| Lost::Ended)?;
        self.port.write_all(name.as_bytes()).map_err(|_| Lost::Ended)?;
        Ok(name.trim_end().trim_matches('"').to_owned())
    }

    fn answer(&mut self, request: &str, until: Instant) -> Result<Answer, Lost> {
        let line = self.line(request, until)?;
        match from_line(&line) {
            Ok(Answer::Hello(_)) => Err(Lost::Restarted),
            Ok(answer) => Ok(answer),
            Err(_) => Err(Lost::Nonsense { request: request.to_owned(), answer: shortened(&line) }),
        }
    }

    /// The next line.
    fn line(&mut self, request: &str, until: Instant) -> Result<String, Lost> {
        let begun = Instant::now();
        let mut bytes = [0; 1 << 16];
        // Bytes before have no end of a line among them.
        let mut seen = 0;
        loop {
            if let Some(end) = self.arrived[seen..].iter().position(|&byte| byte == b'\n') {
                let rest = self.arrived.split_off(seen + end + 1);
                let line = std::mem::replace(&mut self.arrived, rest);
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            seen = self.arrived.len();
            if seen > LONGEST {
                return Err(Lost::Nonsense {
                    request: request.to_owned(),
                    answer: "a line without end".into(),
                });
            }
            match self.port.read(&mut bytes) {
                // Who interrupts us with Ctrl-C interrupts QEMU as well.
                Ok(0) if self.is_interrupted() => return Err(Lost::Interrupted),
                Ok(0) => return Err(Lost::Ended),
                Ok(read) => self.arrived.extend(&bytes[..read]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    if self.is_interrupted() {
                        return Err(Lost::Interrupted);
                    }
                    if Instant::now() >= until {
                        let seconds = begun.elapsed().as_secs();
                        return Err(Lost::Silent { request: request.to_owned(), seconds });
                    }
                }
                Err(_) => return Err(Lost::Ended),
            }
        }
    }

    /// Ends it in order.
    pub fn stop(mut self) -> Ending {
        match self.ask(&Request::Stop, self.patience) {
            Ok(Answer::Done) => self.end(&Lost::Ended),
            Ok(other) => self.end(&nonsense("stop", &other)),
            Err(lost) => self.end(&lost),
        }
    }

    /// Ends it, in whatever state it is. One that runs is interrupted first, in a way that cannot be masked, so that it says
    /// how it stands.
    pub fn end(mut self, why: &Lost) -> Ending {
        let why = if self.is_interrupted() { &Lost::Interrupted } else { why };
        let within = match why {
            Lost::Interrupted => Duration::ZERO,
            Lost::Ended => GOODBYE,
            _ => {
                self.qemu.qmp().set_patience(REACTION);
                match self.qemu.qmp().inject_nmi() {
                    // It has ended meanwhile, or the guest says how it stands.
                    Ok(()) | Err(pagefold_qemu::QemuError::Gone) => GOODBYE,
                    // QEMU itself stands still: there is nothing to wait for.
                    Err(_) => Duration::ZERO,
                }
            }
        };
        let exit = self.qemu.wait(within).ok();
        self.qemu.end();
        Ending::new(exit, why, self.qemu.console().text())
    }
}

/// Sends pulses, in a thread that ends when the result goes, or when the guest is gone.
fn pulse(mut port: UnixStream) -> std::io::Result<Sender<()>> {
    let (alive, ended) = channel::<()>();
    let send = move || {
        loop {
            match port.write_all(&[PULSE]) {
                // A QEMU that stands still hears this one later, and the next ones.
                Err(error) if error.kind() != ErrorKind::WouldBlock => return,
                _ => {}
            }
            match ended.recv_timeout(Duration::from_secs(PULSE_SECONDS)) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    };
    thread::Builder::new().name("pulse".into()).spawn(send)?;
    Ok(alive)
}
