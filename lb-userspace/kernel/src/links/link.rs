//! bpf() commands about links, of every kind: aya has no call to update those of cgroups.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::sys::{self, bpf, cmd, raw};

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct LinkCreateAttr {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct LinkDetachAttr {
    link_fd: u32,
}

/// What a link hangs on, from `struct bpf_link_info`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LinkInfo {
    /// `enum bpf_link_type`.
    pub kind: u32,
    /// Id of the link.
    pub id: u32,
    /// Id of its program.
    pub prog_id: u32,
    pad: u32,
    target: [u32; 4],
}

impl LinkInfo {
    /// Whether its program is one of XDP.
    pub const fn is_xdp(&self) -> bool {
        self.kind == aya_obj::generated::bpf_link_type::BPF_LINK_TYPE_XDP as u32
    }

    /// Interface of an XDP or tcx link; 0 once the interface is gone.
    pub const fn interface(&self) -> u32 {
        self.target[0]
    }

    /// Inode number of the cgroup of a cgroup link; 0 once the cgroup is gone.
    pub const fn cgroup(&self) -> u64 {
        self.target[0] as u64 | (self.target[1] as u64) << 32
    }
}

/// Asks the kernel about a link.
pub fn info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    sys::info(link)
}

/// Where a link goes.
#[derive(Clone, Copy, Debug)]
pub enum LinkTarget<'a> {
    /// An interface, by index.
    Interface(u32),
    /// A cgroup, by an open descriptor of its folder.
    Cgroup(BorrowedFd<'a>),
}

/// Attaches a program. `attach_type` is of `enum bpf_attach_type`, `flags` as it says for that type.
pub fn create(
    program: BorrowedFd<'_>,
    target: LinkTarget<'_>,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let target = match target {
        LinkTarget::Interface(index) => index,
        LinkTarget::Cgroup(fd) => raw(fd),
    };
    let mut attr = LinkCreateAttr { prog_fd: raw(program), target, attach_type, flags, ..Default::default() };
    // SAFETY: no addresses inside; the result is a new descriptor of ours alone.
    unsafe { bpf(cmd::LINK_CREATE, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Puts another program in a link: packets see the old one or the new one, never none.
pub fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link_fd: raw(link), new_prog_fd: raw(program), ..Default::default() };
    // SAFETY: no addresses inside.
    unsafe { bpf(cmd::LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes the program off at once, whoever else holds the link.
pub fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr { link_fd: raw(link) };
    // SAFETY: no addresses inside.
    unsafe { bpf(cmd::LINK_DETACH, &mut attr) }.map(drop)
}
