//! Follows links, addresses and routes over rtnetlink.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{FutureExt, StreamExt, TryStreamExt};
use ipnet::IpNet;
use lb_control::model::Family;
use lb_control::network::{Address, DefaultRoute, Link, Network, XdpAttached};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached as Attached,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, IpVersion, MulticastGroup, RouteMessageBuilder, new_multicast_connection};
use tokio::sync::watch;
use tracing::{debug, warn};

/// Why the network cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] std::io::Error),
    /// The kernel did not answer.
    #[error("cannot list {what} over netlink: {source}")]
    List {
        /// Links, addresses or routes.
        what: &'static str,
        /// What it said.
        #[source]
        source: rtnetlink::Error,
    },
}

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// How long to wait before another try when the kernel cannot be asked.
const RETRY: Duration = Duration::from_secs(1);

/// Lists everything, then follows it for as long as the receiver lives.
pub async fn spawn() -> Result<watch::Receiver<Arc<Network>>, WatchError> {
    let (handle, messages) = connect()?;
    let network = list(&handle).await?;
    let (sender, receiver) = watch::channel(Arc::new(network));
    tokio::spawn(follow(handle, messages, sender));
    Ok(receiver)
}

/// Lists everything once.
pub async fn snapshot() -> Result<Network, WatchError> {
    let (handle, _messages) = connect()?;
    list(&handle).await
}

fn connect() -> Result<(Handle, Messages), WatchError> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv6Rule,
    ];
    let (connection, handle, messages) = new_multicast_connection(&groups).map_err(WatchError::Open)?;
    tokio::spawn(connection);
    Ok((handle, messages))
}

async fn follow(mut handle: Handle, mut messages: Messages, sender: watch::Sender<Arc<Network>>) {
    let mut network = Network::clone(&sender.borrow());
    loop {
        let change = tokio::select! {
            message = messages.next() => match message {
                Some((message, _)) => take_in_all(&mut network, message.payload, &mut messages).await,
                None => Change::Relist,
            },
            () = sender.closed() => return,
        };
        let routes = match change {
            Change::Routes => list_routes(&handle).await.map(Some),
            _ => Ok(None),
        };
        match routes {
            Ok(Some(ways)) => ways.put_into(&mut network),
            Ok(None) if change != Change::Relist => {}
            _ => (handle, messages, network) = relist(handle, messages).await,
        }
        sender.send_if_modified(|current| {
            let changed = **current != network;
            if changed {
                *current = Arc::new(network.clone());
            }
            changed
        });
    }
}

/// How long to wait for the rest of what an address brings with it.
const COMPANIONS: Duration = Duration::from_millis(1);

/// Takes in a message and all that are there already, so that a burst costs one step. An address comes with routes of its own, in
/// messages of their own: they make one step.
async fn take_in_all(
    network: &mut Network,
    first: NetlinkPayload<RouteNetlinkMessage>,
    messages: &mut Messages,
) -> Change {
    let has_companions = matches!(
        &first,
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::NewRoute(_))
    );
    let mut change = take_in(network, first);
    if has_companions && change == Change::Taken {
        tokio::time::sleep(COMPANIONS).await;
    }
    while let Some(Some((message, _))) = messages.next().now_or_never() {
        change = change.max(take_in(network, message.payload));
    }
    change
}

/// Lists everything again, on a new connection when the old one has ended.
async fn relist(mut handle: Handle, mut messages: Messages) -> (Handle, Messages, Network) {
    loop {
        match list(&handle).await {
            Ok(network) => return (handle, messages, network),
            Err(error) => warn!(%error, "trying again"),
        }
        tokio::time::sleep(RETRY).await;
        match connect() {
            Ok(connected) => (handle, messages) = connected,
            Err(error) => warn!(%error, "trying again"),
        }
    }
}

/// What a message asks for, by how much work it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Change {
    None,
    Taken,
    Routes,
    Relist,
}

fn take_in(network: &mut Network, payload: NetlinkPayload<RouteNetlinkMessage>) -> Change {
    let message = match payload {
        NetlinkPayload::InnerMessage(message) => message,
        // The kernel had more to say than the socket holds (ENOBUFS).
        NetlinkPayload::Overrun(_) => {
            debug!("netlink messages were lost, listing everything again");
            return Change::Relist;
        }
        _ => return Change::None,
    };
    match message {
        RouteNetlinkMessage::NewLink(message) => {
            if let Some(link) = link(&message) {
                network.links.insert(link.index, link);
            }
            Change::Taken
        }
        // A port that leaves its bridge is told as a deletion too, of family AF_BRIDGE.
        RouteNetlinkMessage::DelLink(message) if message.header.interface_family == AddressFamily::Unspec => {
            let index = message.header.index;
            network.links.remove(&index);
            network.addresses.retain(|address| address.interface != index);
            Change::Routes
        }
        RouteNetlinkMessage::NewAddress(message) => {
            if let Some(address) = address(&message) {
                let same = |known: &&mut Address| {
                    known.interface == address.interface && known.address == address.address
                };
                match network.addresses.iter_mut().find(same) {
                    Some(known) => *known = address,
                    None => network.addresses.push(address),
                }
            }
            Change::Taken
        }
        RouteNetlinkMessage::DelAddress(message) => {
            if let Some(gone) = address(&message) {
                network
                    .addresses
                    .retain(|known| known.interface != gone.interface || known.address != gone.address);
            }
            // Its routes go with it, and not always with a message of their own.
            Change::Routes
        }
        RouteNetlinkMessage::NewRoute(message) => {
            let mut ways = Ways::default();
            ways.take_in(&message);
            let is_known = ways.gateways.is_subset(&network.gateways);
            let is_known =
                is_known && ways.local.iter().all(|local| network.local.binary_search(local).is_ok());
            network.gateways.extend(ways.gateways);
            ways.local.into_iter().for_each(|local| network.add_local(local));
            let is_known = is_known && ways.broadcasts.is_subset(&network.broadcasts);
            network.broadcasts.extend(ways.broadcasts);
            match (ways.defaults.is_empty(), is_known) {
                (true, true) => Change::None,
                (true, false) => Change::Taken,
                (false, _) => Change::Routes,
            }
        }
        // (A gateway that has gone is noticed when routes are listed the next time: an interface served for nothing does no harm,
        // and a routing daemon changes a thousand routes at once.)
        RouteNetlinkMessage::DelRoute(message)
            if message.header.destination_prefix_length == 0
                || matches!(message.header.kind, RouteType::Local | RouteType::Broadcast) =>
        {
            Change::Routes
        }
        RouteNetlinkMessage::NewRule(rule) | RouteNetlinkMessage::DelRule(rule) if asks_for_more(&rule) => {
            Change::Routes
        }
        _ => Change::None,
    }
}

async fn list(handle: &Handle) -> Result<Network, WatchError> {
    let failed = |what| move |source| WatchError::List { what, source };
    let mut network = Network::default();
    let mut links = pin!(handle.link().get().execute());
    while let Some(message) = links.try_next().await.map_err(failed("links"))? {
        network.links.extend(link(&message).map(|link| (link.index, link)));
    }
    let mut addresses = pin!(handle.address().get().execute());
    while let Some(message) = addresses.try_next().await.map_err(failed("addresses"))? {
        network.addresses.extend(address(&message));
    }
    list_routes(handle).await?.put_into(&mut network);
    Ok(network)
}

async fn list_routes(handle: &Handle) -> Result<Ways, WatchError> {
    let requests =
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
    let mut ways = Ways::default();
    for request in requests {
        let mut routes = pin!(handle.route().get(request).execute());
        let failed = |source| WatchError::List { what: "routes", source };
        while let Some(message) = routes.try_next().await.map_err(failed)? {
            ways.take_in(&message);
        }
    }
    for version in [IpVersion::V4, IpVersion::V6] {
        let mut rules = pin!(handle.rule().get(version).execute());
        // (A kernel without such rules says that it does not know the question.)
        while let Ok(Some(rule)) = rules.try_next().await {
            ways.by_more |= asks_for_more(&rule);
        }
    }
    ways.defaults.sort();
    Ok(ways)
}

/// Whether a rule of routing looks at something that programs do not tell when they ask for a route.
fn asks_for_more(rule: &RuleMessage) -> bool {
    let more = |attribute: &RuleAttribute| match attribute {
        RuleAttribute::FwMark(mark) => *mark != 0,
        RuleAttribute::FwMask(mask) => *mask != 0,
        RuleAttribute::IpProtocol(_)
        | RuleAttribute::SourcePortRange(_)
        | RuleAttribute::DestinationPortRange(_)
        | RuleAttribute::TunId(_) => true,
        _ => false,
    };
    rule.header.tos != 0 || rule.attributes.iter().any(more)
}

fn link(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        index: message.header.index,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::LinkNetNsId(_) => link.peer_elsewhere = true,
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::Link(index) => link.lower = Some(*index),
            LinkAttribute::Address(address) => link.address = address.as_slice().try_into().ok(),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            LinkAttribute::Xdp(facts) => link.xdp = xdp(facts),
            _ => {}
        }
    }
    // Messages of other families (bridge ports) come without a name and say nothing of the link itself.
    (!link.name.is_empty() && message.header.interface_family == AddressFamily::Unspec).then_some(link)
}

fn xdp(facts: &[LinkXdp]) -> Option<(XdpAttached, u32)> {
    let id = |pick: fn(&LinkXdp) -> Option<u32>| facts.iter().find_map(pick);
    let any = id(|fact| if let LinkXdp::ProgId(id) = fact { Some(*id) } else { None });
    let native = id(|fact| if let LinkXdp::DrvProgId(id) = fact { Some(*id) } else { None });
    let attached =
        facts.iter().find_map(|fact| if let LinkXdp::Attached(how) = fact { Some(*how) } else { None })?;
    let how = match attached {
        Attached::Driver | Attached::Multiple => XdpAttached::Native,
        Attached::SocketBuffer => XdpAttached::Generic,
        Attached::Hardware => XdpAttached::Offloaded,
        _ => return None,
    };
    Some((how, native.or(any).unwrap_or(0)))
}

fn address(message: &AddressMessage) -> Option<Address> {
    let find = |pick: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(pick);
    // On point-to-point links `Address` is the peer's and `Local` ours.
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    let flags = message.header.flags;
    // An optimistic address is in use while it is being checked.
    let unchecked =
        flags.contains(AddressHeaderFlags::Tentative) && !flags.contains(AddressHeaderFlags::Optimistic);
    Some(Address {
        interface: message.header.index,
        address,
        prefix: message.header.prefix_len,
        global: matches!(message.header.scope, AddressScope::Universe | AddressScope::Site),
        // For IPv6 the same bit says that the address is a temporary one (RFC 8981).
        primary: !flags.contains(AddressHeaderFlags::Secondary),
        tentative: unchecked || flags.contains(AddressHeaderFlags::Dadfailed),
        deprecated: flags.contains(AddressHeaderFlags::Deprecated),
    })
}

/// The network that a route is for.
fn destination(message: &RouteMessage, family: Family) -> Option<IpNet> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(it)) => Some(IpAddr::V4(*it)),
        RouteAttribute::Destination(RouteAddress::Inet6(it)) => Some(IpAddr::V6(*it)),
        _ => None,
    });
    IpNet::new(address.unwrap_or(family.unspecified()), message.header.destination_prefix_length).ok()
}

/// What a route says of the interfaces that it leads over, or of this node.
#[derive(Default)]
struct Ways {
    defaults: Vec<DefaultRoute>,
    gateways: BTreeSet<u32>,
    local: BTreeSet<IpNet>,
    broadcasts: BTreeSet<IpAddr>,
    /// Rules say which, by more than addresses and interface.
    by_more: bool,
}

impl Ways {
    fn put_into(self, network: &mut Network) {
        (network.default_routes, network.gateways) = (self.defaults, self.gateways);
        network.local = self.local.into_iter().collect();
        (network.broadcasts, network.routes_by_more) = (self.broadcasts, self.by_more);
    }

    fn take_in(&mut self, message: &RouteMessage) {
        let header = &message.header;
        let family = match header.address_family {
            AddressFamily::Inet => Family::V4,
            AddressFamily::Inet6 => Family::V6,
            _ => return,
        };
        if header.kind == RouteType::Local {
            self.local.extend(destination(message, family));
        }
        if header.kind == RouteType::Broadcast {
            self.broadcasts.extend(destination(message, family).map(|network| network.addr()));
        }
        if header.kind != RouteType::Unicast {
            return;
        }
        let (mut metric, mut table, mut source) = (0, u32::from(header.table), None);
        // The one hop, or those of a route that has several.
        let (mut only, mut has_gateway, mut hops) = (None, false, Vec::new());
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Oif(index) => only = Some(*index),
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => has_gateway = true,
                RouteAttribute::PrefSource(RouteAddress::Inet(it)) => source = Some(IpAddr::V4(*it)),
                RouteAttribute::PrefSource(RouteAddress::Inet6(it)) => source = Some(IpAddr::V6(*it)),
                RouteAttribute::MultiPath(several) => hops.extend(several.iter().map(|hop| {
                    let over = |it: &RouteAttribute| {
                        matches!(it, RouteAttribute::Gateway(_) | RouteAttribute::Via(_))
                    };
                    (hop.interface_index, hop.attributes.iter().any(over))
                })),
                _ => {}
            }
        }
        hops.extend(only.map(|index| (index, has_gateway)));
        let by_rule = table != u32::from(RouteHeader::RT_TABLE_MAIN);
        for (interface, over_gateway) in hops {
            if header.destination_prefix_length == 0 {
                self.defaults.push(DefaultRoute { family, by_rule, metric, interface, source });
            }
            if over_gateway {
                self.gateways.insert(interface);
            }
        }
    }
}
