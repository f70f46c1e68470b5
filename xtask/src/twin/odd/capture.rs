//! Frames onto a device and off it.

use std::os::fd::{AsRawFd, OwnedFd};

use lb_lab::Netns;
use miette::{IntoDiagnostic, Result, WrapErr, miette};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt,
    socket, sockopt,
};

/// Room for what has not been read yet: all frames of a run fit.
const ROOM: usize = 64 << 20;

/// A device of a namespace, open for whole frames.
#[derive(Debug)]
pub struct Device {
    socket: OwnedFd,
    link: LinkAddr,
}

impl Device {
    /// Opens one; everything that passes it from now on is kept until it is read.
    pub fn open(netns: &Netns, name: &str) -> Result<Self> {
        let opened = netns.within(|| -> Result<Self> {
            let mut links = getifaddrs().into_diagnostic()?.filter(|it| it.interface_name == name);
            let link = links.find_map(|it| it.address?.as_link_addr().copied());
            let link = link.ok_or_else(|| miette!("no device {name}"))?;
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll);
            let socket = socket.into_diagnostic()?;
            setsockopt(&socket, sockopt::RcvBufForce, &ROOM).into_diagnostic()?;
            bind(socket.as_raw_fd(), &link).into_diagnostic()?;
            let device = Device { socket, link };
            // What came between the two calls may be of other devices.
            device.frames()?;
            Ok(device)
        });
        opened.into_diagnostic()?.wrap_err_with(|| format!("open {name} of {}", netns.name()))
    }

    /// Its hardware address.
    pub fn address(&self) -> Result<[u8; 6]> {
        self.link.addr().ok_or_else(|| miette!("a device without a hardware address"))
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        sendto(self.socket.as_raw_fd(), frame, &self.link, MsgFlags::empty()).into_diagnostic().map(drop)
    }

    /// What has passed since the last call, either way.
    pub fn frames(&self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut buffer = [0; 2048];
        loop {
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => frames.push(buffer[..length].to_vec()),
                Err(Errno::EAGAIN) => return Ok(frames),
                Err(error) => return Err(error).into_diagnostic(),
            }
        }
    }
}
