//! Takes away the clsact qdisc we added, when nobody else has come to use it.

use std::pin::pin;

use futures::TryStreamExt;
use netlink_packet_route::tc::TcHandle;
use rtnetlink::Handle;

use super::watch::WatchError;

/// Removes the clsact qdisc of an interface unless it has a filter. Whether it did.
pub async fn remove_empty_clsact(interface: u32) -> Result<bool, WatchError> {
    let (connection, handle, _messages) = rtnetlink::new_connection().map_err(WatchError::Open)?;
    tokio::spawn(connection);
    // The kernel counts interfaces in a signed number.
    let Ok(index) = i32::try_from(interface) else { return Ok(false) };
    let failed = |source| WatchError::List { what: "filters", source };
    if has_filters(&handle, index).await.map_err(failed)? {
        return Ok(false);
    }
    let mut request = handle.qdisc().del(index);
    let header = &mut request.message_mut().header;
    header.parent = TcHandle::CLSACT;
    header.handle = TcHandle { major: 0xffff, minor: 0 };
    Ok(request.execute().await.is_ok())
}

async fn has_filters(handle: &Handle, index: i32) -> Result<bool, rtnetlink::Error> {
    let ingress = handle.traffic_filter(index).get().ingress().execute();
    let egress = handle.traffic_filter(index).get().egress().execute();
    Ok(pin!(ingress).try_next().await?.is_some() || pin!(egress).try_next().await?.is_some())
}
