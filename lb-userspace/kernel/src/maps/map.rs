//! One open map: reading, writing and listing it, in batches where the kernel has them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::sys::{address, address_mut, bpf, cmd, info, raw};

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
