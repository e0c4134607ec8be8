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
use std::time::Duration;

use anyhow::{Context, Result};
use pagefold_virtio_mem_vhost::{Backend, Socket, Stop};

use super::commands::{self, Reply};

/// The most bytes of a command.
const LINE: u64 = 4096;
/// The most clients at a time: each is a thread and an open file.
const CLIENTS: usize = 32;
/// How long a process that can take no client waits before it tries again.
const PAUSE: Duration = Duration::from_millis(100);
/// A client that does not take its answer is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(10);
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
/// The process is gone, or closes the connection.
pub fn tell(path: &Path, command: &str) -> Result<ExitCode> {
    let name = path.display();
    let mut stream = UnixStream::connect(path)
        .with_context(|| format!("no device answers at {name}: give the PATH of its --control"))?;
    let mut answer = String::new();
    stream
        .write_all(format!("{command}\n").as_bytes())
        .and_then(|()| stream.shutdown(Shutdown::Write))
        .and_then(|()| stream.read_to_string(&mut answer))
        .with_context(|| format!("the device at {name} has hung up"))?;
    let answer = answer.strip_suffix('\n').unwrap_or(&answer);
    if let Some(why) = answer.strip_prefix(ERROR) {
        crate::stderr::say(why.trim_end());
        return Ok(ExitCode::FAILURE);
    }
    io::stdout().write_all(answer.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
