//! What is searched for: a flow by one of the packets that belong to it.

use super::search::find;
use super::{Found, Home};
use crate::abi::Flow;
use crate::addr::{Port, Proto};
use crate::datapath::Family;
use crate::datapath::desk::Desk;
use crate::datapath::parse::Tuple;
use crate::datapath::tables::{PacketTables, Tables};

/// A search in a client's set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Query<A> {
    /// Whose flow.
    pub client: A,
    /// From which port.
    pub client_port: Port,
    /// Of which protocol.
    pub proto: Proto,
    /// What else must hold: bits of [`Query`].
    pub conditions: u8,
    /// Port that goes with `address`.
    pub port: Port,
    /// The other end: frontend or backend.
    pub address: A,
    /// A frontend that does not count, if that is asked for.
    pub except: (A, Port),
    /// The client's sets and tag.
    pub(super) home: Home,
}

impl<A: Family> Query<A> {
    /// The other end is the backend, not the frontend.
    pub(super) const BACKEND: u8 = 1;
    /// The other end is either of them.
    pub(super) const EITHER: u8 = 8;
    /// The flow carries its client's own port through the kernel.
    pub(super) const OWN_PORT: u8 = 2;
    /// The flow is masqueraded.
    pub(super) const MASQUERADED: u8 = 4;
    /// The flow is a connection of the node's own, which else counts for none.
    pub(super) const OWN: u8 = 32;
    /// The flow has another frontend than `except`.
    pub(super) const EXCEPT: u8 = 16;

    /// No search: what memory for one holds before there is one.
    pub const NOTHING: Self = Self {
        client: A::UNSPECIFIED,
        client_port: Port::new(0),
        proto: Proto(0),
        conditions: 0,
        port: Port::new(0),
        address: A::UNSPECIFIED,
        except: (A::UNSPECIFIED, Port::new(0)),
        home: Home { first: 0, tag: 0 },
    };

    #[inline(always)]
    pub(super) fn new<T: Tables<A>>(
        client: (A, Port),
        proto: Proto,
        other: (A, Port),
        conditions: u8,
        tables: &T,
    ) -> Self {
        Self {
            home: Home::of(client.0, client.1, proto, tables),
            client: client.0,
            client_port: client.1,
            proto,
            conditions,
            port: other.1,
            address: other.0,
            except: (A::UNSPECIFIED, Port::default()),
        }
    }

    #[inline(always)]
    const fn asks(&self, condition: u8) -> bool {
        self.conditions & condition != 0
    }

    /// The flags that count, and which of them the flow has.
    #[inline(always)]
    const fn flags(&self) -> (u8, u8) {
        let (own, of_node) = if self.asks(Self::OWN) { (Flow::<A>::OWN, Flow::<A>::OF_NODE) } else { (0, 0) };
        let shared = if self.asks(Self::OWN_PORT) { Flow::<A>::SHARED_PORT } else { 0 };
        (Flow::<A>::OWN | of_node | shared, own)
    }

    #[inline(always)]
    pub(super) fn fits(&self, flow: &Flow<A>) -> bool {
        let (counting, wanted) = self.flags();
        let backend = || flow.backend == self.address && flow.backend_port == self.port;
        let frontend = || flow.frontend == self.address && flow.frontend_port == self.port;
        flow.is_of(self.client, self.client_port, self.proto)
            && (if self.asks(Self::BACKEND) {
                backend()
            } else {
                frontend() || self.asks(Self::EITHER) && backend()
            })
            && flow.flags & counting == wanted
            && !(self.asks(Self::MASQUERADED) && flow.nat == A::UNSPECIFIED)
            && !(self.asks(Self::EXCEPT)
                && flow.frontend == self.except.0
                && flow.frontend_port == self.except.1)
    }

    /// Writes it, field by field. (Of a copy the compiler for BPF makes a call.)
    #[inline(always)]
    pub(super) fn write_to(&self, place: &mut Self) {
        place.client = self.client;
        place.client_port = self.client_port;
        place.proto = self.proto;
        place.conditions = self.conditions;
        place.port = self.port;
        place.address = self.address;
        if self.asks(Self::EXCEPT) {
            place.except = self.except;
        }
        place.home = self.home;
    }
}

/// The flow of a packet from a client: to the frontend, or to the backend itself.
#[inline(always)]
pub fn by_destination<'d, A: Family, T: PacketTables<A>>(
    tuple: &Tuple<A>,
    tables: &T,
    desk: &'d mut Desk<A>,
) -> Option<Found<'d, A, T::Set>> {
    find_from_client(tuple, Query::<A>::EITHER, tables, desk)
}

/// The flow of a packet from client to frontend.
#[inline(always)]
pub fn by_frontend<'d, A: Family, T: PacketTables<A>>(
    tuple: &Tuple<A>,
    tables: &T,
    desk: &'d mut Desk<A>,
) -> Option<Found<'d, A, T::Set>> {
    find_from_client(tuple, 0, tables, desk)
}

/// The flow of a packet from backend to client.
#[inline(always)]
pub fn by_reply<'d, A: Family, T: PacketTables<A>>(
    tuple: &Tuple<A>,
    tables: &T,
    desk: &'d mut Desk<A>,
) -> Option<Found<'d, A, T::Set>> {
    find_from_client(&tuple.reversed(), Query::<A>::BACKEND | Query::<A>::OWN_PORT, tables, desk)
}

/// The masqueraded flow of a packet from client to backend, which ingress has translated.
#[inline(always)]
pub fn by_translated<'d, A: Family, T: PacketTables<A>>(
    tuple: &Tuple<A>,
    tables: &T,
    desk: &'d mut Desk<A>,
) -> Option<Found<'d, A, T::Set>> {
    let conditions = Query::<A>::BACKEND | Query::<A>::OWN_PORT | Query::<A>::MASQUERADED;
    find_from_client(tuple, conditions, tables, desk)
}

/// What a connection of the node's own is searched for by: a packet that leaves.
#[inline(always)]
pub fn of_own<A: Family, T: PacketTables<A>>(tuple: &Tuple<A>, tables: &T) -> Query<A> {
    let (client, other) = ((tuple.source, tuple.source_port), (tuple.destination, tuple.destination_port));
    Query::new(client, tuple.proto, other, Query::<A>::BACKEND | Query::<A>::OWN, tables)
}

#[inline(always)]
fn find_from_client<'d, A: Family, T: PacketTables<A>>(
    tuple: &Tuple<A>,
    conditions: u8,
    tables: &T,
    desk: &'d mut Desk<A>,
) -> Option<Found<'d, A, T::Set>> {
    let (client, other) = ((tuple.source, tuple.source_port), (tuple.destination, tuple.destination_port));
    find(&Query::new(client, tuple.proto, other, conditions, tables), tables, desk)
}
