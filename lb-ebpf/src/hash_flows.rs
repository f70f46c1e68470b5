//! The flow table as most load balancers have it, to be measured against: two entries a flow in hash maps, half-open
//! flows in an LRU one, established flows in a plain one. IPv4; without masquerading.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap};
use lb_common::abi::{Flow, FlowState, FlowWord};
use lb_common::addr::{Ipv4, Port, Proto};

/// A client and whom it speaks to: a frontend, or a backend.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FlowKey {
    pub client: Ipv4,
    pub other: Ipv4,
    pub client_port: Port,
    pub other_port: Port,
    pub proto: Proto,
    pub backend: bool,
    pub padding: [u8; 2],
}

/// A flow, under its frontend.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Record {
    pub word: FlowWord,
    pub flow: Flow<Ipv4>,
}

const FLOWS: u32 = 262_144;

#[map]
pub static HALF_OPEN: LruHashMap<FlowKey, Record> = LruHashMap::with_max_entries(FLOWS / 2, 0);

/// Keys with backends, to keys with frontends.
#[map]
pub static HALF_OPEN_REPLIES: LruHashMap<FlowKey, FlowKey> = LruHashMap::with_max_entries(FLOWS / 2, 0);

#[map]
pub static ESTABLISHED: HashMap<FlowKey, Record> = HashMap::with_max_entries(FLOWS, 0);

#[map]
pub static ESTABLISHED_REPLIES: HashMap<FlowKey, FlowKey> = HashMap::with_max_entries(FLOWS, 0);

#[inline(always)]
fn by_frontend(key: &FlowKey) -> Option<*mut Record> {
    if let Some(record) = ESTABLISHED.get_ptr_mut(key) {
        return Some(record);
    }
    let record = HALF_OPEN.get_ptr_mut(key)?;
    // SAFETY: a live map element.
    if unsafe { (*record).word }.state() == FlowState::TCP_ESTABLISHED
        || unsafe { (*record).word }.state() == FlowState::UDP_ESTABLISHED
    {
        promote(key, unsafe { &*record });
    }
    Some(record)
}

/// To the map that no flood empties.
#[inline(always)]
fn promote(key: &FlowKey, record: &Record) {
    let reply = reply_key(&record.flow);
    let _ = ESTABLISHED.insert(key, record, 0);
    let _ = ESTABLISHED_REPLIES.insert(&reply, key, 0);
    let _ = HALF_OPEN.remove(key);
    let _ = HALF_OPEN_REPLIES.remove(&reply);
}

#[inline(always)]
pub fn find(key: &FlowKey, either: bool) -> Option<*mut Record> {
    if !key.backend {
        let found = by_frontend(key);
        if found.is_some() || !either {
            return found;
        }
    }
    let key = FlowKey { backend: true, ..*key };
    // SAFETY: copied at once.
    let frontend = unsafe { ESTABLISHED_REPLIES.get(&key).or_else(|| HALF_OPEN_REPLIES.get(&key)) }?;
    let frontend = *frontend;
    by_frontend(&frontend)
}

#[inline(always)]
fn reply_key(flow: &Flow<Ipv4>) -> FlowKey {
    FlowKey {
        client: flow.client,
        other: flow.backend,
        client_port: flow.client_port,
        other_port: flow.backend_port,
        proto: flow.proto,
        backend: true,
        padding: [0; 2],
    }
}

#[inline(always)]
pub fn insert(flow: &Flow<Ipv4>, word: FlowWord) -> bool {
    let key =
        FlowKey { other: flow.frontend, other_port: flow.frontend_port, backend: false, ..reply_key(flow) };
    let record = Record { word, flow: *flow };
    HALF_OPEN.insert(&key, &record, 0).is_ok() && HALF_OPEN_REPLIES.insert(&reply_key(flow), &key, 0).is_ok()
}
