//! A channel between two processes, for messages that may bring descriptors along. Nobody waits for the other.

use std::fs::Permissions;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    bind, connect, listen, recvmsg, sendmsg, socket, socketpair,
};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// Bytes a message may have.
pub const LONGEST: usize = 64 * 1024;
/// Descriptors a message may bring along.
const MOST_DESCRIPTORS: usize = 16;

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What has come.
#[derive(Debug)]
pub enum Received {
    /// A message, with what it brought along.
    Message(Vec<u8>, Vec<OwnedFd>),
    /// The other end is gone.
    End,
}

impl From<OwnedFd> for Channel {
    fn from(end: OwnedFd) -> Self {
        Self(end)
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.0
    }
}

impl Channel {
    /// Both ends.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        Ok((Self(one), Self(other)))
    }

    /// An end of a channel to who listens at `path`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let own = new_socket()?;
        connect(own.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self(own))
    }

    /// Sends a message of at most [`LONGEST`] bytes. False when there is no room for it now.
    ///
    /// # Errors
    /// The other end is gone, or the message cannot be sent at all.
    pub fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<bool> {
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let along: &[ControlMessage<'_>] =
            if raw.is_empty() { &[] } else { &[ControlMessage::ScmRights(&raw)] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(message)], along, flags, None) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits for messages at this end, within a tokio runtime.
    pub fn listen(self) -> io::Result<Listening> {
        let readiness = UnixStream::from_std(self.0.try_clone()?.into())?;
        Ok(Listening { channel: self, readiness })
    }

    /// Takes the next message.
    ///
    /// # Errors
    /// There is none yet ([`io::ErrorKind::WouldBlock`]), it is longer than any should be, or the socket is broken.
    fn receive(&self) -> io::Result<Received> {
        let mut bytes = vec![0; LONGEST];
        let mut along = cmsg_space!([RawFd; MOST_DESCRIPTORS]);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let answer = match recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut along), flags) {
            Ok(answer) => answer,
            Err(Errno::ECONNRESET) => return Ok(Received::End),
            Err(errno) => return Err(errno.into()),
        };
        let mut descriptors = Vec::new();
        for message in answer.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows them.
                descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if answer.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long"));
        }
        let length = answer.bytes;
        if length == 0 {
            return Ok(Received::End);
        }
        bytes.truncate(length);
        Ok(Received::Message(bytes, descriptors))
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

/// A place where others can connect.
#[derive(Debug)]
pub struct Door(UnixListener);

impl Door {
    /// Opens it at `path`, for this user alone, within a tokio runtime. What is there from an earlier process goes.
    pub fn open(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = new_socket()?;
        bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        // Nobody gets in before this.
        listen(&socket, Backlog::new(1)?)?;
        Ok(Self(UnixListener::from_std(socket.into())?))
    }

    /// Waits for somebody to come.
    pub async fn next(&self) -> io::Result<Channel> {
        let (stream, _) = self.0.accept().await?;
        Ok(Channel(stream.into_std()?.into()))
    }
}

/// An end that somebody listens at.
#[derive(Debug)]
pub struct Listening {
    channel: Channel,
    /// The same socket as the runtime waits for it; nothing is read by its means.
    readiness: UnixStream,
}

impl Listening {
    /// The next message; one that is given up waiting for is not lost.
    ///
    /// # Errors
    /// A message is longer than any should be, or the socket is broken.
    pub async fn next(&self) -> io::Result<Received> {
        loop {
            self.readiness.readable().await?;
            match self.readiness.try_io(Interest::READABLE, || self.channel.receive()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    /// See [`Channel::send`].
    pub fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<bool> {
        self.channel.send(message, descriptors)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use super::*;

    fn message(channel: &Channel) -> (Vec<u8>, Vec<OwnedFd>) {
        match channel.receive().expect("received") {
            Received::Message(bytes, descriptors) => (bytes, descriptors),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_message_brings_descriptors_along() {
        let (one, other) = Channel::pair().expect("a pair");
        assert_eq!(other.receive().expect_err("nothing yet").kind(), io::ErrorKind::WouldBlock);
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"inside").expect("written");
        assert!(one.send(b"first", &[file.as_fd()]).expect("sent"));
        assert!(one.send(b"second", &[]).expect("sent"));
        drop((one, file));
        let (bytes, mut descriptors) = message(&other);
        assert_eq!((bytes.as_slice(), descriptors.len()), (b"first".as_slice(), 1));
        let mut file = File::from(descriptors.remove(0));
        let mut text = String::new();
        file.rewind().expect("rewound");
        file.read_to_string(&mut text).expect("read");
        assert_eq!(text, "inside");
        let (bytes, descriptors) = message(&other);
        assert_eq!((bytes.as_slice(), descriptors.len()), (b"second".as_slice(), 0));
        assert!(matches!(other.receive(), Ok(Received::End)), "what was sent comes before the end");
    }

    #[test]
    fn nobody_waits_for_one_who_does_not_read() {
        let (one, _other) = Channel::pair().expect("a pair");
        let long = vec![7; LONGEST / 2];
        let sent = (0..1000).take_while(|_| one.send(&long, &[]).expect("sent or not")).count();
        assert!((1..1000).contains(&sent), "{sent}");
    }

    #[test]
    fn who_comes_through_a_door_can_talk() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("door");
        assert!(Channel::connect(&path).is_err(), "nobody listens");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            drop(Door::open(&path).expect("a door"));
            let door = Door::open(&path).expect("in the place of the first");
            let one = Channel::connect(&path).expect("connected");
            let other = door.next().await.expect("somebody").listen().expect("listens");
            assert!(one.send(b"hello", &[]).expect("sent"));
            let Ok(Received::Message(bytes, _)) = other.next().await else { panic!("a message") };
            assert_eq!(bytes, b"hello");
            drop(one);
            assert!(matches!(other.next().await, Ok(Received::End)));
        });
    }
}
