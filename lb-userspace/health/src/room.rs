//! Room for connections: who has been silent longest makes way for who comes.
//!
//! One room for all listeners, since descriptors are the process's. Whoever comes is let in at once; nobody has to wait for
//! another's time-out.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

/// The connections there are.
#[derive(Debug)]
pub(super) struct Room {
    seats: Mutex<Seats>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Seats {
    next: u64,
    taken: HashMap<u64, Seat>,
}

#[derive(Debug)]
struct Seat {
    /// A request has begun to come and has not been answered.
    busy: bool,
    /// Since when: a request that comes byte by byte does not get younger.
    since: Instant,
    /// Ends the connection.
    end: Option<AbortHandle>,
}

impl Seats {
    /// Ends the connection that can best be done without: of those that say nothing the one that has been silent longest,
    /// else the one whose request has been under way longest.
    fn make_way(&mut self) -> bool {
        let last = self.taken.iter().min_by_key(|(_, seat)| (seat.busy, seat.since)).map(|(id, _)| *id);
        let seat = last.and_then(|id| self.taken.remove(&id));
        if let Some(end) = seat.as_ref().and_then(|seat| seat.end.as_ref()) {
            end.abort();
        }
        seat.is_some()
    }
}

impl Room {
    /// Room for so many.
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { seats: Mutex::default(), capacity })
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        // Whoever held the lock did nothing that can be left half done.
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection in. Another goes when there is no room.
    pub(super) fn enter(self: &Arc<Self>) -> Ticket {
        let mut seats = self.seats();
        while seats.taken.len() >= self.capacity && seats.make_way() {}
        let id = seats.next;
        seats.next += 1;
        seats.taken.insert(id, Seat { busy: false, since: Instant::now(), end: None });
        Ticket { room: self.clone(), id }
    }

    /// Says how a connection is ended.
    pub(super) fn ends_by(&self, id: u64, end: AbortHandle) {
        match self.seats().taken.get_mut(&id) {
            Some(seat) => seat.end = Some(end),
            // It had to go already.
            None => end.abort(),
        }
    }

    /// Ends one connection. False when there is none.
    pub(super) fn make_way(&self) -> bool {
        self.seats().make_way()
    }

    fn change(&self, id: u64, busy: bool) {
        if let Some(seat) = self.seats().taken.get_mut(&id)
            && (!busy || !seat.busy)
        {
            (seat.busy, seat.since) = (busy, Instant::now());
        }
    }
}

/// A connection's seat, free again when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    room: Arc<Room>,
    id: u64,
}

impl Ticket {
    /// Names it to the room.
    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    /// The request has an answer.
    pub(super) fn answered(&self) {
        self.room.change(self.id, false);
    }

    fn heard(&self) {
        self.room.change(self.id, true);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.room.seats().taken.remove(&self.id);
    }
}

/// A stream that tells its seat when something comes.
#[derive(Debug)]
pub(super) struct Heard {
    stream: TcpStream,
    ticket: Arc<Ticket>,
}

impl Heard {
    /// Wraps the stream of a connection.
    pub(super) const fn new(stream: TcpStream, ticket: Arc<Ticket>) -> Self {
        Self { stream, ticket }
    }
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.ticket.heard();
        }
        polled
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_been_silent_longest_makes_way() {
        let room = Room::new(3);
        let here = |room: &Room| {
            let mut ids: Vec<u64> = room.seats().taken.keys().copied().collect();
            ids.sort_unstable();
            ids
        };
        let tickets = [room.enter(), room.enter(), room.enter()];
        // The first speaks, and goes on byte by byte; the second has had an answer; the third has said nothing.
        tickets[0].heard();
        tickets[1].heard();
        tickets[1].answered();
        tickets[0].heard();
        let _fourth = room.enter();
        assert_eq!(here(&room), [0, 1, 3]);
        let fifth = room.enter();
        assert_eq!(here(&room), [0, 3, 4]);
        // Where all speak, it is the one whose request takes longest.
        room.change(3, true);
        fifth.heard();
        let _sixth = room.enter();
        assert_eq!(here(&room), [3, 4, 5]);
        drop(tickets);
        drop(fifth);
        assert_eq!(here(&room), [3, 5]);
    }
}
