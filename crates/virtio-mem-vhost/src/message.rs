//! A message of the protocol as it stands on the socket: a header of three words of 32 bits (request, flags, bytes of the
//! body), the body, and descriptors that come with the first byte.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Bytes of a header.
pub(crate) const HEADER: usize = 12;
/// The most bytes of a body: as the library has it (`vhost`, `MAX_MSG_SIZE`).
const MAX_BODY: usize = 0x1000;
/// The most descriptors of a message (`vhost`, `MAX_ATTACHED_FD_ENTRIES`).
const MAX_FDS: usize = 32;

/// One message.
#[derive(Debug)]
pub(crate) struct Message {
    /// Which request, or which one is answered.
    pub(crate) request: u32,
    /// Header and body, as they came.
    bytes: Vec<u8>,
    /// Descriptors.
    pub(crate) fds: Vec<OwnedFd>,
}

impl Message {
    /// The next message; `None` where the other end has hung up between two of them.
    ///
    /// # Errors
    /// The socket's, a message that ends early, and one that is too long.
    pub(crate) fn receive(from: &UnixStream) -> io::Result<Option<Self>> {
        let mut bytes = vec![0; HEADER];
        let mut fds = Vec::new();
        if !fill(from, &mut bytes, &mut fds)? {
            return Ok(None);
        }
        let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        let (request, len) = (word(&bytes, 0), word(&bytes, 8) as usize);
        if len > MAX_BODY {
            return Err(wrong(format!("message {request} has a body of {len} bytes, more than {MAX_BODY}")));
        }
        bytes.resize(HEADER + len, 0);
        if len > 0 && !fill(from, &mut bytes[HEADER..], &mut fds)? {
            return Err(wrong(format!("message {request} ends early")));
        }
        Ok(Some(Self { request, bytes, fds }))
    }

    /// Passes it on.
    ///
    /// # Errors
    /// The socket's.
    pub(crate) fn send(&self, to: &UnixStream) -> io::Result<()> {
        let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut at = 0;
        while at < self.bytes.len() {
            let mut control = SendAncillaryBuffer::new(&mut space);
            // With the first byte only: that is whose they are.
            if at == 0 && !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(wrong(format!("message {} has too many descriptors", self.request)));
            }
            match sendmsg(to, &[IoSlice::new(&self.bytes[at..])], &mut control, SendFlags::NOSIGNAL) {
                Ok(sent) => at += sent,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// A word of 64 bits of the body, by byte; 0 where the body has none there.
    pub(crate) fn word(&self, at: usize) -> u64 {
        let body = &self.bytes[HEADER..];
        body.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
    }
}

pub(crate) fn wrong(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Fills all of `bytes`; false where there are none at all.
fn fill(from: &UnixStream, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<bool> {
    let mut filled = 0;
    while filled < bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes[filled..])];
        let received = match recvmsg(from, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if fds.len() > MAX_FDS {
            return Err(wrong(format!("a message with more than {MAX_FDS} descriptors")));
        }
        match received.bytes {
            0 if filled == 0 => return Ok(false),
            0 => return Err(wrong("a message ends early".into())),
            bytes => filled += bytes,
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn bytes(request: u32, body: &[u8]) -> Vec<u8> {
        let words = [request, 1, body.len() as u32];
        words.iter().flat_map(|word| word.to_ne_bytes()).chain(body.iter().copied()).collect()
    }

    #[test]
    fn messages_keep_their_ends_and_descriptors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fds = vec![theirs.try_clone().unwrap().into(), ours.try_clone().unwrap().into()];
        let first = Message { request: 7, bytes: bytes(7, &5u64.to_ne_bytes()), fds };
        first.send(&theirs).unwrap();
        Message { request: 1, bytes: bytes(1, &[]), fds: Vec::new() }.send(&theirs).unwrap();
        let got = Message::receive(&ours).unwrap().unwrap();
        assert_eq!((got.request, got.word(0), got.word(8), got.fds.len()), (7, 5, 0, 2));
        // They hold the other end open.
        drop(got);
        let got = Message::receive(&ours).unwrap().unwrap();
        assert_eq!((got.request, got.fds.len()), (1, 0));
        drop(theirs);
        drop(first);
        assert!(Message::receive(&ours).unwrap().is_none());
    }

    #[test]
    fn messages_that_are_none_are_errors() {
        for bytes in [&bytes(1, &[0; MAX_BODY + 1])[..], &bytes(1, &[1; 8])[..15], &bytes(1, &[])[..5]] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(bytes).unwrap();
            drop(theirs);
            assert!(Message::receive(&ours).is_err());
        }
    }
}
