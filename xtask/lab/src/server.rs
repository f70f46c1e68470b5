//! `xtask pod-server`: a UDP echo and a TCP echo that say which pod they are and whom they see.
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

/// Arguments of `xtask pod-server`.
#[derive(Debug, clap::Args)]
pub struct ServerArgs {
    /// The pod's name, first word of every answer
    #[arg(long)]
    name: String,

    /// UDP port: a datagram `x` is answered with `NAME client=ADDRESS:PORT x`
    #[arg(long)]
    udp: u16,

    /// TCP port: the first line sent is `NAME client=ADDRESS:PORT`, the rest what is received
    #[arg(long)]
    tcp: u16,
}

/// Serves until killed.
pub fn serve(args: &ServerArgs) -> io::Result<()> {
    let datagrams = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, args.udp))?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, args.tcp))?;
    let name = args.name.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        loop {
            // An error here is an ICMP error about an earlier answer.
            let Ok((length, client)) = datagrams.recv_from(&mut buffer) else { continue };
            let mut answer = format!("{name} client={} ", canonical(client)).into_bytes();
            answer.extend_from_slice(&buffer[..length]);
            let _ = datagrams.send_to(&answer, client);
        }
    });
    for stream in listener.incoming().flatten() {
        let name = args.name.clone();
        thread::Builder::new().stack_size(128 << 10).spawn(move || echo(stream, &name))?;
    }
    Ok(())
}

/// The sockets serve both families, and show IPv4 clients as IPv4-mapped addresses.
fn canonical(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}

fn echo(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let client = stream.peer_addr()?;
    stream.write_all(format!("{name} client={}\n", canonical(client)).as_bytes())?;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}
