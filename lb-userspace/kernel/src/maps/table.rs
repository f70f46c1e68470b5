//! Maps with types: shared keys and values in and out, no bytes.

use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Map, MapInfo};

/// Entries put into the form the kernel takes at a time; bounds the memory that takes.
const BATCH: usize = 4096;

/// A map whose keys are `K` and whose values are `V`.
#[derive(Debug)]
pub struct Table<K, V> {
    map: Map,
    kind: PhantomData<(K, V)>,
}

/// Bytes that stand for themselves: every shared key and value.
pub trait Plain: FromBytes + IntoBytes + Immutable + Copy {}

impl<T: FromBytes + IntoBytes + Immutable + Copy> Plain for T {}

fn sized(map: Map, key: usize, value: usize) -> io::Result<Map> {
    let info = map.info();
    if info.key_size as usize != key || info.value_size as usize != value {
        let message = format!(
            "keys of {} and values of {} bytes; this release knows {key} and {value}",
            info.key_size, info.value_size
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(map)
}

fn decode<T: Plain>(bytes: &[u8]) -> io::Result<T> {
    T::read_from_bytes(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// Takes over an open map; an error when its sizes are others than the types'.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { map: sized(Map::new(fd)?, size_of::<K>(), size_of::<V>())?, kind: PhantomData })
    }

    /// Type and sizes.
    pub const fn info(&self) -> &MapInfo {
        self.map.info()
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::new_zeroed();
        Ok(self.map.lookup(key.as_bytes(), value.as_mut_bytes())?.then_some(value))
    }

    /// Writes one entry.
    pub fn put(&self, key: &K, value: &V) -> io::Result<()> {
        self.map.update(key.as_bytes(), value.as_bytes())
    }

    /// Takes one entry out; false when there was none.
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        self.map.delete(key.as_bytes())
    }

    /// Writes many entries.
    pub fn put_all(&self, entries: &[(K, V)]) -> io::Result<()> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for entries in entries.chunks(BATCH) {
            keys.clear();
            values.clear();
            for (key, value) in entries {
                keys.extend_from_slice(key.as_bytes());
                values.extend_from_slice(value.as_bytes());
            }
            self.map.update_all(&keys, &values)?;
        }
        Ok(())
    }

    /// Takes many entries out. Keys that are not there are no error.
    pub fn remove_all(&self, keys: &[K]) -> io::Result<()> {
        self.map.delete_all(keys.as_bytes())
    }

    /// Every entry; for an array every index.
    pub fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let (keys, values) = self.map.entries()?;
        keys.chunks_exact(size_of::<K>())
            .zip(values.chunks_exact(size_of::<V>()))
            .map(|(key, value)| Ok((decode(key)?, decode(value)?)))
            .collect()
    }

    /// Number of entries, counted by reading them.
    pub fn count(&self) -> io::Result<usize> {
        Ok(self.map.entries()?.0.len() / size_of::<K>())
    }

    /// The map beneath.
    pub const fn map(&self) -> &Map {
        &self.map
    }
}

/// An array with a value for each CPU.
#[derive(Debug)]
pub struct PerCpu<V> {
    map: Map,
    kind: PhantomData<V>,
}

impl<V: Plain> PerCpu<V> {
    /// Takes over an open map; an error when its sizes are others than the type's.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { map: sized(Map::new(fd)?, size_of::<u32>(), size_of::<V>())?, kind: PhantomData })
    }

    /// Type and sizes.
    pub const fn info(&self) -> &MapInfo {
        self.map.info()
    }

    /// The values of all CPUs at `index`.
    pub fn get(&self, index: u32) -> io::Result<Vec<V>> {
        let mut bytes = vec![0; self.map.value_len()];
        if !self.map.lookup(index.as_bytes(), &mut bytes)? {
            return Ok(Vec::new());
        }
        Self::split(&bytes)
    }

    /// Makes the values of all CPUs zero at these indices.
    pub fn clear(&self, indices: &[u32]) -> io::Result<()> {
        /// Of zeros at a time: a value has room for every CPU, and there may be many of both.
        const BYTES: usize = 1 << 20;
        let each = self.map.value_len();
        let at_once = (BYTES / each).clamp(1, indices.len().max(1));
        let zeros = vec![0; at_once * each];
        indices
            .chunks(at_once)
            .try_for_each(|some| self.map.update_all(some.as_bytes(), &zeros[..some.len() * each]))
    }

    /// The values of all CPUs at every index, in order.
    pub fn all(&self) -> io::Result<Vec<Vec<V>>> {
        let (_, values) = self.map.entries()?;
        values.chunks_exact(self.map.value_len()).map(Self::split).collect()
    }

    fn split(bytes: &[u8]) -> io::Result<Vec<V>> {
        let each = size_of::<V>().next_multiple_of(8);
        bytes.chunks_exact(each).map(|value| decode(&value[..size_of::<V>()])).collect()
    }
}
