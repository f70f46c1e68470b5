//! Whom frames that come in by an interface may be for. Pure.

use std::collections::BTreeSet;

use lb_common::abi::{STATION_SLOTS, STATION_TRIES, Station};

use super::Network;

/// Kinds of devices that lie on another one and hear what comes in there.
const ON_TOP: [&str; 4] = ["macvlan", "macvtap", "vlan", "ipvlan"];

/// The Ethernet addresses of an interface, and of the devices on top of it: bridge or bond, macvlan, VLAN, and theirs.
pub fn addresses(network: &Network, interface: u32) -> BTreeSet<[u8; 6]> {
    let mut seen = BTreeSet::from([interface]);
    let mut to_do = vec![interface];
    while let Some(index) = to_do.pop() {
        let controller = network.links.get(&index).and_then(|link| link.controller);
        let on_top = network.links.values().filter(|link| link.lower == Some(index) && link.is_of(&ON_TOP));
        let above = controller.into_iter().chain(on_top.map(|link| link.index));
        to_do.extend(above.filter(|index| seen.insert(*index)));
    }
    seen.iter().filter_map(|index| network.links.get(index)?.address).collect()
}

/// What the programs' table holds.
#[derive(Clone, Debug)]
pub struct Stations {
    slots: Vec<u64>,
}

/// How the table becomes what it should be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// Slots to be written, in order.
    pub writes: Vec<(u32, u64)>,
    /// Stations for which there is no room: tc serves them.
    pub left_out: Vec<Station>,
}

impl Stations {
    /// A table that holds these words, by slot.
    pub fn new(slots: impl IntoIterator<Item = (u32, u64)>) -> Self {
        let mut table = Self { slots: vec![0; STATION_SLOTS as usize] };
        for (slot, word) in slots {
            table.set(slot, word);
        }
        table
    }

    /// Brings the table to `wanted`. Stations that stay keep their slots.
    pub fn change(&mut self, wanted: &BTreeSet<Station>) -> Change {
        let mut change = Change::default();
        let mut placed = BTreeSet::new();
        for (slot, word) in (0..).zip(self.slots.clone()) {
            let station = Station(word);
            let stays = wanted.contains(&station) && placed.insert(station);
            if word != 0 && !stays {
                self.set(slot, 0);
                change.writes.push((slot, 0));
            }
        }
        for station in wanted.difference(&placed) {
            let slots = (0..STATION_TRIES).map(|turn| station.slot(turn));
            match slots.into_iter().find(|slot| self.slots.get(*slot as usize) == Some(&0)) {
                Some(slot) => {
                    self.set(slot, station.0);
                    change.writes.push((slot, station.0));
                }
                None => change.left_out.push(*station),
            }
        }
        change
    }

    fn set(&mut self, slot: u32, word: u64) {
        if let Some(known) = self.slots.get_mut(slot as usize) {
            *known = word;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{link, node};
    use super::super::{Link, Network};
    use super::*;

    fn station(number: u8) -> [u8; 6] {
        [2, 0, 0, 0, 0, number]
    }

    #[test]
    fn what_lies_on_an_interface_hears_its_frames() {
        let with =
            |index, name, kind, number| Link { address: Some(station(number)), ..link(index, name, kind) };
        let links = [
            Link { controller: Some(3), ..with(2, "eth0", "", 1) },
            with(3, "br0", "bridge", 2),
            Link { lower: Some(3), ..with(4, "vip", "macvlan", 3) },
            Link { lower: Some(2), ..with(5, "eth0.7", "vlan", 1) },
            Link { lower: Some(2), ..with(6, "veth", "veth", 5) },
            with(7, "eth1", "", 6),
        ];
        let network = Network { links: links.into_iter().map(|link| (link.index, link)).collect(), ..node() };
        assert_eq!(addresses(&network, 2), BTreeSet::from([station(1), station(2), station(3)]));
        assert_eq!(addresses(&network, 7), BTreeSet::from([station(6)]));
        assert_eq!(addresses(&network, 9), BTreeSet::new(), "one that is gone");
    }

    #[test]
    fn stations_that_stay_stay_where_they_are() {
        let set = |numbers: &[u32]| numbers.iter().map(|n| Station::new(*n, station(1))).collect();
        let mut table = Stations::new([]);
        let first = table.change(&set(&[2, 3]));
        assert_eq!((first.writes.len(), first.left_out.len()), (2, 0));
        assert_eq!(table.change(&set(&[2, 3])), Change::default());
        let second = table.change(&set(&[3, 4]));
        assert_eq!(second.writes.len(), 2, "one goes, one comes: {second:?}");
        assert_eq!(
            Stations::new(first.writes).change(&set(&[2, 3])),
            Change::default(),
            "as read from the map"
        );
        for (slot, word) in second.writes.into_iter().filter(|(_, word)| *word != 0) {
            assert!((0..STATION_TRIES).any(|turn| Station(word).slot(turn) == slot));
        }
    }

    #[test]
    fn a_full_table_leaves_some_out_and_keeps_the_rest() {
        let wanted: BTreeSet<Station> = (0..4000).map(|n| Station::new(n, station(1))).collect();
        let change = Stations::new([]).change(&wanted);
        assert_eq!(change.writes.len() + change.left_out.len(), 4000);
        assert!(change.writes.len() > 900, "{}", change.writes.len());
    }
}
