//! bpf(2) itself, what pins have in common, and what the agent asks of its own process.
//!
//! The commands of each trade are in its folder. They take and give checked types: a buffer whose length does not fit
//! the map is refused before the kernel could read past it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Waits until no program is at work any more that began before: what it has read may be older than what was written by then.
/// <https://man7.org/linux/man-pages/man2/membarrier.2.html>
pub fn wait_for_programs() {
    const GLOBAL: i64 = 1;
    // Programs of packets take microseconds. (For kernels that have no such call, as with nohz_full.)
    const LONG: Duration = Duration::from_secs(1);
    // SAFETY: the call has two numbers and touches no memory of ours.
    if unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0) } != 0 {
        std::thread::sleep(LONG);
    }
}

/// Commands of bpf(2), from `enum bpf_cmd`.
pub(crate) mod cmd {
    pub const MAP_LOOKUP_ELEM: i64 = 1;
    pub const MAP_UPDATE_ELEM: i64 = 2;
    pub const MAP_DELETE_ELEM: i64 = 3;
    pub const MAP_GET_NEXT_KEY: i64 = 4;
    pub const OBJ_PIN: i64 = 6;
    pub const OBJ_GET: i64 = 7;
    pub const PROG_TEST_RUN: i64 = 10;
    pub const OBJ_GET_INFO_BY_FD: i64 = 15;
    pub const BTF_GET_FD_BY_ID: i64 = 19;
    pub const BTF_GET_NEXT_ID: i64 = 23;
    pub const MAP_LOOKUP_BATCH: i64 = 24;
    pub const MAP_UPDATE_BATCH: i64 = 26;
    pub const MAP_DELETE_BATCH: i64 = 27;
    pub const LINK_CREATE: i64 = 28;
    pub const LINK_UPDATE: i64 = 29;
    pub const LINK_DETACH: i64 = 34;
}

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The `test` member of `union bpf_attr`, as far as it is used.
#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

/// Runs a program on a copy of a packet, which goes nowhere.
pub(crate) fn show_packet(program: BorrowedFd<'_>, packet: &[u8]) -> io::Result<()> {
    let mut attr = TestRunAttr {
        prog_fd: raw(program),
        data_size_in: packet.len() as u32,
        data_in: address(packet),
        repeat: 1,
        ..TestRunAttr::default()
    };
    // SAFETY: `data_in` is `data_size_in` bytes long, is only read, and outlives the call; the other address is zero.
    unsafe { bpf(cmd::PROG_TEST_RUN, &mut attr) }.map(|_| ())
}

/// Issues one command. The return value of the kernel, or its errno.
///
/// # Safety
/// Every address in `attr` must be zero or point at memory of the length that the kernel derives from the
/// other fields, writable where the command writes, and stay valid for the call.
pub(crate) unsafe fn bpf<T: IntoBytes>(command: i64, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the caller vouches for the addresses inside; the attribute itself is `size_of::<T>()` long.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret as i32) }
}

pub(crate) fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

pub(crate) fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr() as u64
}

pub(crate) fn address_mut<T>(slice: &mut [T]) -> u64 {
    slice.as_mut_ptr() as u64
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Gives memory that is free back to the system, which the allocator would keep.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks, and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets this process have as many descriptors as it may: the usual limit is for programs that use select(2).
pub fn raise_descriptor_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a `rlimit` of ours, which the first fills in.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            // (Where it is refused, the limit stays as it was.)
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Closes all that this process has inherited but standard input, output and error: what its parent was given (locks, ends of pipes) is
/// not to be held open here. For the very beginning, when nothing is open that belongs to anybody here.
pub fn close_inherited() {
    // SAFETY: two numbers; the caller owns no descriptor yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
}

/// Opens a pinned object. `read_only` maps can be looked up and mapped, not changed.
pub fn obj_get(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    const BPF_F_RDONLY: u32 = 1 << 3;
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        pathname: path.as_ptr() as u64,
        file_flags: if read_only { BPF_F_RDONLY } else { 0 },
        ..Default::default()
    };
    // SAFETY: `path` is a C string that outlives the call; the result is a new descriptor of ours alone.
    unsafe { bpf(cmd::OBJ_GET, &mut attr).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Pins a map, program or link.
pub fn obj_pin(path: &Path, object: BorrowedFd<'_>) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: raw(object), ..Default::default() };
    // SAFETY: `path` is a C string that outlives the call.
    unsafe { bpf(cmd::OBJ_PIN, &mut attr) }.map(drop)
}

pub(crate) fn info<T: FromBytes + IntoBytes + Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    // SAFETY: a zeroed question names no address.
    unsafe { info_into(object, T::default()) }
}

/// The same with a question that names memory for parts of the answer.
///
/// # Safety
/// Every address in `info` must be zero or point at memory of the length that stands beside it, writable for the call.
pub(crate) unsafe fn info_into<T: FromBytes + IntoBytes>(object: BorrowedFd<'_>, info: T) -> io::Result<T> {
    let mut info = info;
    let mut attr =
        InfoAttr { bpf_fd: raw(object), info_len: size_of::<T>() as u32, info: (&raw mut info) as u64 };
    // SAFETY: `info` is as long as `info_len` says, and any bytes make a valid `T`; the caller vouches for the addresses inside.
    unsafe { bpf(cmd::OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// `SO_NETNS_COOKIE` of the namespace this process is in.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` has room for `length` bytes, and any bytes are a u64.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
