//! Who gives commands: standard input, and a socket.
//!
//! Over the socket an answer is the command's lines, then an empty line; what was wrong is a line that begins with `error:`.
//! A client may send any number of commands.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pagefold_virtio_mem_vhost::{Backend, Socket, Stop};

use super::commands::{self, Reply};

/// The most bytes of a command.
const LINE: u64 = 4096;
/// The most clients at a time: each is a thread and an open file.
const CLIENTS: usize = 32;
/// How long a process that can take no client waits before it tries again.
const PAUSE: Duration = Duration::from_millis(100);
/// A client that does not take its answer, and a device that does not give one, are not waited for longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most bytes of an answer.
const ANSWER: u64 = 1 << 20;
/// What a wrong command's answer begins with.
const ERROR: &str = "error: ";

/// Does what standard input says, in a thread, until it ends; its end says nothing.
///
/// # Errors
/// The system gives no thread.
pub fn from_stdin(backend: &Backend, stop: &Stop) -> io::Result<()> {
    let (backend, stop) = (backend.clone(), stop.clone());
    thread::Builder::new().name("stdin".into()).spawn(move || {
        let (mut out, mut is_read) = (io::stdout(), true);
        let _ = obey(&backend, &stop, io::stdin().lock(), |answer| {
            match answer {
                Reply::Wrong(why) => crate::stderr::say(why),
                Reply::Text(text) if is_read => {
                    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                        // Commands are obeyed all the same.
                        crate::stderr::say(format_args!(
                            "standard output takes no answers any more: {error}"
                        ));
                        is_read = false;
                    }
                }
                Reply::Text(_) | Reply::Quit => {}
            }
            Ok(())
        });
    })?;
    Ok(())
}

/// Does what clients of a socket say, in threads, for ever.
///
/// # Errors
/// The system gives no thread.
pub fn from_socket(backend: &Backend, stop: &Stop, socket: Arc<Socket>) -> io::Result<()> {
    let (backend, stop) = (backend.clone(), stop.clone());
    thread::Builder::new().name("control".into()).spawn(move || {
        let clients = Arc::new(());
        for client in socket.listener().incoming() {
            let client = match client {
                Ok(client) => client,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                // No more files: it waits until others are gone.
                Err(_) => {
                    thread::sleep(PAUSE);
                    continue;
                }
            };
            let one = Arc::clone(&clients);
            // One is this thread's, and one is this client's.
            if Arc::strong_count(&one) > CLIENTS + 1 {
                // It fits an empty socket; whether anybody reads it is not this thread's business.
                let _ = client.set_nonblocking(true);
                let _ =
                    writeln!(&client, "{ERROR}{CLIENTS} clients are connected already: end one of them\n");
                continue;
            }
            let (backend, stop) = (backend.clone(), stop.clone());
            let spawned = thread::Builder::new().name("control".into()).spawn(move || {
                // A client that hangs up does not want the answer.
                let _ = talk(&backend, &stop, &client);
                drop(one);
            });
            if spawned.is_err() {
                crate::stderr::say("no thread for a control client");
            }
        }
    })?;
    Ok(())
}

fn talk(backend: &Backend, stop: &Stop, client: &UnixStream) -> io::Result<()> {
    client.set_write_timeout(Some(PATIENCE))?;
    let mut to = client;
    obey(backend, stop, BufReader::new(client), |answer| {
        let text = match answer {
            Reply::Text(text) => text,
            Reply::Wrong(why) => format!("{ERROR}{why}\n"),
            Reply::Quit => "ending\n".into(),
        };
        to.write_all(text.as_bytes())?;
        to.write_all(b"\n")
    })
}

fn obey(
    backend: &Backend,
    stop: &Stop,
    mut from: impl BufRead,
    mut answer: impl FnMut(Reply) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let mut line = Vec::new();
        if from.by_ref().take(LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line.len() as u64 == LINE && !line.ends_with(b"\n") {
            // The rest of it is no command.
            from.skip_until(b'\n')?;
            answer(Reply::Wrong(format!("a command has at most {LINE} bytes")))?;
            continue;
        }
        let line = String::from_utf8_lossy(&line);
        let done = commands::run(backend, line.trim());
        let quit = matches!(done, Reply::Quit);
        answer(done)?;
        if quit {
            stop.stop();
            return Ok(());
        }
    }
}

/// Sends a command to a device that runs, and prints the answer.
///
/// # Errors
/// The process is gone, closes the connection, or does not answer.
pub fn tell(path: &Path, command: &str) -> Result<ExitCode> {
    let name = path.display();
    let stream = UnixStream::connect(path)
        .with_context(|| format!("no device answers at {name}: give the PATH of its --control"))?;
    let answer = match ask(&stream, command) {
        Ok(answer) => answer,
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            bail!(
                "what listens at {name} has not answered for {} s: is it a device, and not stopped?",
                PATIENCE.as_secs()
            )
        }
        Err(error) => return Err(error).with_context(|| format!("the device at {name} has hung up")),
    };
    let answer = String::from_utf8_lossy(&answer);
    let answer = answer.strip_suffix('\n').unwrap_or(&answer);
    if let Some(why) = answer.strip_prefix(ERROR) {
        crate::stderr::say(why.trim_end());
        return Ok(ExitCode::FAILURE);
    }
    io::stdout().write_all(answer.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn ask(mut stream: &UnixStream, command: &str) -> io::Result<Vec<u8>> {
    let end = Instant::now() + PATIENCE;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        // A timeout of nothing would be none.
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match stream.read(&mut part) {
            Ok(0) => return Ok(answer),
            Ok(_) if left.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
            Ok(read) if answer.len() as u64 + read as u64 > ANSWER => {
                return Err(io::Error::other("its answer does not end"));
            }
            Ok(read) => answer.extend_from_slice(part.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
