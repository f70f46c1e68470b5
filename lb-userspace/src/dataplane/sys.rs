//! bpf() commands that aya has no call for: maps by descriptor, batches, links of every kind.
//!
//! Everything here takes and gives checked types: a buffer whose length does not fit the map is refused
//! before the kernel could read past it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub mod program;

/// Commands of bpf(2), from `enum bpf_cmd`.
mod cmd {
    pub const MAP_LOOKUP_ELEM: i64 = 1;
    pub const MAP_UPDATE_ELEM: i64 = 2;
    pub const MAP_DELETE_ELEM: i64 = 3;
    pub const MAP_GET_NEXT_KEY: i64 = 4;
    pub const OBJ_PIN: i64 = 6;
    pub const OBJ_GET: i64 = 7;
    pub const OBJ_GET_INFO_BY_FD: i64 = 15;
    pub const MAP_LOOKUP_BATCH: i64 = 24;
    pub const MAP_UPDATE_BATCH: i64 = 26;
    pub const MAP_DELETE_BATCH: i64 = 27;
    pub const LINK_CREATE: i64 = 28;
    pub const LINK_UPDATE: i64 = 29;
    pub const LINK_DETACH: i64 = 34;
}

/// The kernel's own "operation not supported", which has no name in userspace.
const ENOTSUPP: i32 = 524;

/// Entries asked for in one batch call.
const BATCH: usize = 4096;

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[derive(Default, IntoBytes, Immutable, FromBytes)]
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
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

/// Issues one command. The return value of the kernel, or its errno.
///
/// # Safety
/// Every address in `attr` must be zero or point at memory of the length that the kernel derives from the
/// other fields, writable where the command writes, and stay valid for the call.
unsafe fn bpf<T: IntoBytes>(command: i64, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the caller vouches for the addresses inside; the attribute itself is `size_of::<T>()` long.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret as i32) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr() as u64
}

fn address_mut<T>(slice: &mut [T]) -> u64 {
    slice.as_mut_ptr() as u64
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
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

fn info<T: FromBytes + IntoBytes + Default>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let mut attr =
        InfoAttr { bpf_fd: raw(object), info_len: size_of::<T>() as u32, info: (&raw mut info) as u64 };
    // SAFETY: `info` is as long as `info_len` says, zeroed, and any bytes make a valid `T`.
    unsafe { bpf(cmd::OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
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
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(link)
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
pub fn link_create(
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
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr { link_fd: raw(link), new_prog_fd: raw(program), ..Default::default() };
    // SAFETY: no addresses inside.
    unsafe { bpf(cmd::LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes the program off at once, whoever else holds the link.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkDetachAttr { link_fd: raw(link) };
    // SAFETY: no addresses inside.
    unsafe { bpf(cmd::LINK_DETACH, &mut attr) }.map(drop)
}

/// Type and sizes of a map, from `struct bpf_map_info`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MapInfo {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Id of the map.
    pub id: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value, of one CPU.
    pub value_size: u32,
    /// Entries there is room for.
    pub max_entries: u32,
    /// `BPF_F_…` of its creation.
    pub flags: u32,
}

impl MapInfo {
    const PERCPU_KINDS: [u32; 3] = [
        aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY as u32,
        aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_PERCPU_HASH as u32,
        aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_LRU_PERCPU_HASH as u32,
    ];
}

/// An open map, its sizes known.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    info: MapInfo,
    value_len: usize,
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Map {
    /// Takes over an open map.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let info: MapInfo = info(fd.as_fd())?;
        let value_len = if MapInfo::PERCPU_KINDS.contains(&info.kind) {
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
            (info.value_size as usize).next_multiple_of(8) * cpus
        } else {
            info.value_size as usize
        };
        Ok(Self { fd, info, value_len })
    }

    /// Type and sizes.
    pub const fn info(&self) -> &MapInfo {
        &self.info
    }

    /// Bytes of a value as it passes between kernel and userspace, all CPUs together.
    pub const fn value_len(&self) -> usize {
        self.value_len
    }

    fn key_len(&self) -> usize {
        self.info.key_size as usize
    }

    fn check(&self, keys: usize, values: usize, count: usize) -> io::Result<()> {
        if keys != self.key_len() * count || values != self.value_len * count {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{count} entries in {keys} and {values} bytes do not fit {:?}", self.info),
            ));
        }
        Ok(())
    }

    fn elem(&self, key: &[u8], value: u64, flags: u64) -> ElemAttr {
        ElemAttr { map_fd: raw(self.as_fd()), pad: 0, key: address(key), value, flags }
    }

    /// Reads the value of `key` into `value`; false when there is none.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.check(key.len(), value.len(), 1)?;
        let mut attr = self.elem(key, address_mut(value), 0);
        // SAFETY: key and value have the lengths of this map, checked above.
        match unsafe { bpf(cmd::MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes one entry, new or not.
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.check(key.len(), value.len(), 1)?;
        let mut attr = self.elem(key, address(value), 0);
        // SAFETY: key and value have the lengths of this map, checked above.
        unsafe { bpf(cmd::MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Takes one entry out; false when there is none.
    pub fn delete(&self, key: &[u8]) -> io::Result<bool> {
        self.check(key.len(), self.value_len, 1)?;
        let mut attr = self.elem(key, 0, 0);
        // SAFETY: the key has the length of this map, checked above.
        match unsafe { bpf(cmd::MAP_DELETE_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes many entries that lie end to end; one by one where the kernel has no batches.
    pub fn update_all(&self, keys: &[u8], values: &[u8]) -> io::Result<()> {
        let count = keys.len() / self.key_len().max(1);
        self.check(keys.len(), values.len(), count)?;
        let keys = keys.chunks(self.key_len() * BATCH);
        for (keys, values) in keys.zip(values.chunks(self.value_len * BATCH)) {
            let mut attr = BatchAttr {
                keys: address(keys),
                values: address(values),
                count: (keys.len() / self.key_len()) as u32,
                map_fd: raw(self.as_fd()),
                ..Default::default()
            };
            // SAFETY: `count` keys and values of this map's lengths, checked above.
            match unsafe { bpf(cmd::MAP_UPDATE_BATCH, &mut attr) } {
                Err(error) if no_batches(&error) => {
                    for (key, value) in keys.chunks(self.key_len()).zip(values.chunks(self.value_len)) {
                        self.update(key, value)?;
                    }
                }
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Takes out many keys that lie end to end. Keys that are not there are no error.
    pub fn delete_all(&self, keys: &[u8]) -> io::Result<()> {
        let count = keys.len() / self.key_len().max(1);
        self.check(keys.len(), self.value_len * count, count)?;
        for mut keys in keys.chunks(self.key_len() * BATCH) {
            while !keys.is_empty() {
                let mut attr = BatchAttr {
                    keys: address(keys),
                    count: (keys.len() / self.key_len()) as u32,
                    map_fd: raw(self.as_fd()),
                    ..Default::default()
                };
                // SAFETY: `count` keys of this map's length, checked above.
                match unsafe { bpf(cmd::MAP_DELETE_BATCH, &mut attr) } {
                    Ok(_) => break,
                    // The kernel stops at a key that is not there and says how many went before it.
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                        let done = (attr.count as usize + 1) * self.key_len();
                        keys = keys.get(done..).unwrap_or_default();
                    }
                    Err(error) if no_batches(&error) => {
                        for key in keys.chunks(self.key_len()) {
                            self.delete(key)?;
                        }
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Every entry: keys and values, each end to end in the same order.
    pub fn entries(&self) -> io::Result<(Vec<u8>, Vec<u8>)> {
        match self.entries_batched() {
            Err(error) if no_batches(&error) => self.entries_one_by_one(),
            other => other,
        }
    }

    fn entries_batched(&self) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut batch = BATCH.min(self.info.max_entries as usize).max(1);
        // Where to go on: a key for arrays, a bucket number for hashes.
        let mut cursor = vec![0_u8; self.key_len().max(4)];
        let mut next = cursor.clone();
        let mut first = true;
        loop {
            let (key_start, value_start) = (keys.len(), values.len());
            keys.resize(key_start + batch * self.key_len(), 0);
            values.resize(value_start + batch * self.value_len, 0);
            let mut attr = BatchAttr {
                in_batch: if first { 0 } else { address(&cursor) },
                out_batch: address_mut(&mut next),
                keys: address_mut(&mut keys[key_start..]),
                values: address_mut(&mut values[value_start..]),
                count: batch as u32,
                map_fd: raw(self.as_fd()),
                ..Default::default()
            };
            // SAFETY: keys and values have room for `count` entries of this map's lengths, and both
            // cursors for a key or a bucket number.
            let result = unsafe { bpf(cmd::MAP_LOOKUP_BATCH, &mut attr) };
            let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
            let got = match errno {
                None | Some(libc::ENOENT) => attr.count as usize,
                _ => 0,
            };
            keys.truncate(key_start + got * self.key_len());
            values.truncate(value_start + got * self.value_len);
            match (result, errno) {
                (Ok(_), _) => {
                    std::mem::swap(&mut cursor, &mut next);
                    first = false;
                }
                (Err(_), Some(libc::ENOENT)) => return Ok((keys, values)),
                // One hash bucket holds more than a whole batch.
                (Err(_), Some(libc::ENOSPC)) => batch *= 2,
                (Err(error), _) => return Err(error),
            }
        }
    }

    fn entries_one_by_one(&self) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut key: Option<Vec<u8>> = None;
        let mut value = vec![0; self.value_len];
        loop {
            let mut next = vec![0_u8; self.key_len()];
            let mut attr = self.elem(key.as_deref().unwrap_or_default(), address_mut(&mut next), 0);
            if key.is_none() {
                attr.key = 0;
            }
            // SAFETY: the key is none or of this map's length; `next` has room for one.
            match unsafe { bpf(cmd::MAP_GET_NEXT_KEY, &mut attr) } {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok((keys, values)),
                Err(error) => return Err(error),
            }
            if self.lookup(&next, &mut value)? {
                keys.extend_from_slice(&next);
                values.extend_from_slice(&value);
            }
            key = Some(next);
        }
    }
}

fn no_batches(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL))
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
