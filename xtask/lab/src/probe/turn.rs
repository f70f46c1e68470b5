//! One socket asks several servers in turn: whose answers does it see?
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::TurnReport;

#[derive(Debug, clap::Args)]
pub struct TurnArgs {
    /// Whom to ask, in this order
    #[arg(long, required = true)]
    to: Vec<SocketAddr>,
}

const PATIENCE: Duration = Duration::from_secs(2);

pub fn ask(args: &TurnArgs) -> io::Result<TurnReport> {
    let mut report = TurnReport::default();
    let socket = open(args)?;
    for to in &args.to {
        socket.send_to(b"together", to)?;
    }
    for _ in &args.to {
        report.together.extend(answer(&socket)?);
    }
    report.together.sort();
    let socket = open(args)?;
    for to in &args.to {
        socket.send_to(b"one", to)?;
        report.one_by_one.extend(answer(&socket)?);
    }
    let socket = open(args)?;
    for to in &args.to {
        socket.connect(to)?;
        report.peers.push(socket.peer_addr()?);
    }
    Ok(report)
}

fn open(args: &TurnArgs) -> io::Result<UdpSocket> {
    let is_v4 = args.to.iter().all(SocketAddr::is_ipv4);
    let any = if is_v4 { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind::<SocketAddr>(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// From whom; nobody is no error.
fn answer(socket: &UdpSocket) -> io::Result<Option<SocketAddr>> {
    match socket.recv_from(&mut [0; 2048]) {
        Ok((_, from)) => Ok(Some(from)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
