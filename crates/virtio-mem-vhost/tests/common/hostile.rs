//! A front end that says whatever bytes tell it to, and what must hold of the backend all the same: it lives, and serves the
//! next VMM. The fuzz target and a test run this.
#![allow(dead_code, reason = "each user uses a part of it")]

use std::fs::File;
use std::io::{IoSlice, PipeWriter, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use pagefold_virtio_mem_device::{Memfd, Pages, Settings};
use pagefold_virtio_mem_spec::{Request, RequestType, Response, ResponseType};
use pagefold_virtio_mem_vhost::{Backend, Event, Server, Socket, Until};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::vmm::{self, MIB, Vmm, WANTED};

const ADDR: u64 = 1 << 32;
const SIZE: u64 = 64 * MIB;
const BLOCK: u64 = 2 * MIB;

/// Numbers that are at an edge of something.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    127,
    128,
    129,
    0xffff,
    0x1_0000,
    0x1000,
    SIZE,
    ADDR,
    ADDR + SIZE,
    1 << 30,
    1 << 52,
    u64::MAX - 4095,
    u64::MAX,
];

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> u64 {
        let at = self.next().unwrap_or(0);
        EDGES[usize::from(at % 16)].wrapping_add(u64::from(at / 16).wrapping_sub(1))
    }
}

/// Says what the bytes tell, to a backend of its own. Returns how many messages were said.
pub fn run(bytes: &[u8]) -> usize {
    let memfd = Memfd::new(SIZE, Pages::Normal).unwrap();
    let file = memfd.file().try_clone().unwrap();
    let settings = Settings {
        block_size: Some(BLOCK),
        guest_block_size: 4 * MIB,
        requested_size: 16 * MIB,
        resize_without_driver: true,
        ..Settings::new(ADDR, SIZE)
    };
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&events);
    let backend = Backend::new(settings, memfd, None, move |event| log.lock().unwrap().push(event)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let mut server = Server::new(backend.clone(), Socket::new(&path).unwrap()).unwrap();
    let stop = server.stopper();
    let server = thread::spawn(move || server.run(Until::Stopped));
    let memory = || vmm::memory(&file, ADDR, SIZE);

    let mut bytes = Bytes(bytes);
    let kind = bytes.next().unwrap_or(0);
    // Some begin as an honest VMM does, with a ring that runs.
    let honest = (kind % 4 != 0).then(|| {
        let mut vmm = Vmm::connect(&path, memory());
        if kind % 4 > 1 {
            vmm.start(WANTED).unwrap();
        }
        vmm
    });
    let stream = match &honest {
        Some(vmm) => {
            // SAFETY: the front end has it open, and lives as long as this borrow.
            let fd = unsafe { BorrowedFd::borrow_raw(vmm.frontend.as_raw_fd()) };
            UnixStream::from(fd.try_clone_to_owned().unwrap())
        }
        None => UnixStream::connect(&path).unwrap(),
    };
    // Open until the end: who reads from their other ends waits as long.
    let mut held = Vec::new();
    let mut said = 0;
    while let Some(code) = bytes.next() {
        let (message, fds) = message(code, &mut bytes, &file, &mut held);
        if !say(&stream, &message, &fds) {
            break;
        }
        said += 1;
    }
    // All that it answers, until it hangs up or has nothing more to say.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = (&stream).read_to_end(&mut Vec::new());
    drop((stream, honest));
    let gone = |event: &Event| matches!(event, Event::Disconnected(_));
    vmm::until("it is gone", || events.lock().unwrap().iter().any(gone));

    // An honest VMM is served.
    let status = backend.status();
    assert!(status.plugged_size <= 16 * MIB && status.driver.is_none(), "{status:?}");
    let mut vmm = Vmm::connect(&path, memory());
    vmm.start(WANTED).unwrap();
    let ack = Response::new(ResponseType::Ack);
    assert_eq!(vmm.ask(&Request::new(RequestType::UnplugAll, 0, 0)), ack);
    assert_eq!(vmm.ask(&Request::new(RequestType::Plug, ADDR, 8)), ack);
    assert_eq!(backend.status().plugged_size, 16 * MIB);
    stop.stop();
    server.join().unwrap().unwrap();
    said
}

fn say(to: &UnixStream, message: &[u8], fds: &[OwnedFd]) -> bool {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    // Whatever is answered meanwhile is not read: it fits the socket.
    sendmsg(to, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok()
}

/// A message: mostly of the right shape, with numbers at the edges of things and descriptors of any kind.
fn message(
    code: u8,
    bytes: &mut Bytes<'_>,
    file: &File,
    held: &mut Vec<PipeWriter>,
) -> (Vec<u8>, Vec<OwnedFd>) {
    let request = u32::from(code % 48);
    let how = bytes.next().unwrap_or(0);
    let flags = [1, 9, 5, 0, 0xffff_ffff, 1, 9, 1][usize::from(how % 8)];
    let mut body = Vec::new();
    let mut fds = Vec::new();
    let count = match request {
        5 => {
            let regions = u64::from(how / 8 % 5);
            body.extend(regions.to_ne_bytes());
            4 * regions
        }
        // The region's message has a word of padding first.
        37 | 38 => 5,
        9 => 5,
        8 | 10 | 11 | 18 => 1,
        _ => u64::from(how / 8 % 4),
    };
    if matches!(request, 8 | 10 | 11 | 18) {
        let index = u32::from(how / 8 % 3);
        body.extend(index.to_ne_bytes());
        body.extend((bytes.number() as u32).to_ne_bytes());
    } else {
        for _ in 0..count {
            body.extend(bytes.number().to_ne_bytes());
        }
    }
    let wanted = match request {
        5 => how / 8 % 5,
        12..=14 | 21 | 37 | 42 => 1,
        _ => how / 64 % 2,
    };
    for _ in 0..wanted {
        fds.extend(descriptor(bytes.next().unwrap_or(0), file, held));
    }
    let mut len = body.len() as u32;
    if how == 255 {
        len = bytes.number() as u32;
    }
    let mut message: Vec<u8> = [request, flags, len].iter().flat_map(|word| word.to_ne_bytes()).collect();
    message.extend(body);
    (message, fds)
}

fn descriptor(kind: u8, file: &File, held: &mut Vec<PipeWriter>) -> Option<OwnedFd> {
    Some(match kind % 7 {
        0 => file.try_clone().unwrap().into(),
        1 => {
            let small = File::from(memfd_create("small", MemfdFlags::CLOEXEC).unwrap());
            small.set_len(4096).unwrap();
            small.into()
        }
        2 => rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap(),
        // Readable, but never enough for a doorbell.
        3 => {
            let (reader, mut writer) = std::io::pipe().unwrap();
            std::io::Write::write_all(&mut writer, &[1]).unwrap();
            held.push(writer);
            reader.into()
        }
        4 => UnixStream::pair().unwrap().0.into(),
        5 => File::open("/dev/zero").unwrap().into(),
        _ => return None,
    })
}
