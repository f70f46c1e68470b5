//! A way from a lab node to a server on this machine: the server's own address, 127.0.0.1 and port, answers in the
//! node's namespace too, so that a kubeconfig and its certificates hold on both sides.
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;

use nix::sys::socket;
use std::os::fd::AsRawFd;

use super::error::{Doing, Result};
use super::netns::Netns;

/// A listener in a node that hands connections on; closed when dropped.
#[derive(Debug)]
pub struct Relay(TcpListener);

impl Relay {
    pub(super) fn start(netns: &Netns, port: u16) -> Result<Relay> {
        let what = || format!("listen on 127.0.0.1:{port} in {}", netns.name());
        let listener = netns.within(|| TcpListener::bind((Ipv4Addr::LOCALHOST, port)))?.doing(what)?;
        let accepting = listener.try_clone().doing(what)?;
        thread::spawn(move || {
            for inside in accepting.incoming() {
                let Ok(inside) = inside else { return };
                // What the server refuses is refused to the client: its connection is dropped here.
                if let Ok(outside) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                    let _ = join(inside, outside);
                }
            }
        });
        Ok(Relay(listener))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Wakes the accepting thread with an error.
        let _ = socket::shutdown(self.0.as_raw_fd(), socket::Shutdown::Both);
    }
}

fn join(inside: TcpStream, outside: TcpStream) -> io::Result<()> {
    copy(inside.try_clone()?, outside.try_clone()?);
    copy(outside, inside);
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}
