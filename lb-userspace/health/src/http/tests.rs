//! Silent and slow clients, many of them, and honest ones between.

use std::net::Ipv6Addr;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// How long an honest client may have to wait.
const WAIT: Duration = Duration::from_millis(100);

fn serve_all(address: SocketAddr, room: &Arc<Room>) -> SocketAddr {
    let listener = listen(address, Families::Own).expect("a listener");
    let address = listener.local_addr().expect("bound");
    let routes: Routes = Arc::new(|_| Some(reply(StatusCode::OK, "text/plain", "ok".into())));
    let room = room.clone();
    tokio::spawn(async move { accept_into(&room, listener, routes).await });
    address
}

/// Asks as the kubelet does, with a connection for each question. How long the answer took.
async fn probe(address: SocketAddr) -> Duration {
    let began = Instant::now();
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok::<_, io::Error>(text)
    };
    let text =
        tokio::time::timeout(Duration::from_secs(5), ask).await.expect("an answer").expect("an answer");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    began.elapsed()
}

async fn probes(what: &str, address: SocketAddr) {
    let mut waits = Vec::new();
    for _ in 0..18 {
        waits.push(probe(address).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    waits.sort();
    // On a busy machine one or the other may wait for a processor, and none for a connection's time-out.
    assert!(waits[15] < WAIT && waits[17] < Duration::from_secs(1), "{what}: {waits:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_keep_nobody_waiting() {
    lb_kernel::sys::raise_descriptor_limit();
    for ip in [std::net::Ipv4Addr::LOCALHOST.into(), std::net::IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let room = Room::new(CONNECTIONS);
        let address = serve_all(SocketAddr::new(ip, 0), &room);
        let mut silent = Vec::new();
        for count in [70, 1000] {
            while silent.len() < count {
                silent.push(TcpStream::connect(address).await.expect("a connection"));
            }
            probes(&format!("{count} silent at {ip}"), address).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rush_keeps_nobody_waiting() {
    lb_kernel::sys::raise_descriptor_limit();
    let room = Room::new(CONNECTIONS);
    let address = serve_all("127.0.0.1:0".parse().expect("an address"), &room);
    let rush = tokio::spawn(async move {
        let all = (0..1000).map(|_| TcpStream::connect(address));
        futures::future::join_all(all).await
    });
    probes("a rush of 1000", address).await;
    rush.await.expect("connections");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_come_byte_by_byte_keep_nobody_waiting() {
    const FEW: usize = 8;
    let room = Room::new(FEW);
    let address = serve_all("127.0.0.1:0".parse().expect("an address"), &room);
    for _ in 0..4 * FEW {
        // All have come before the first who is honest: newcomers may take the place of one who waits for a processor.
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        tokio::spawn(async move {
            for byte in b"GET /livez HTTP/1.1\r\nhost: a-name-that-takes-its-time\r\n".iter().cycle() {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    probes("slow senders", address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_share_their_room() {
    let room = Room::new(8);
    let addresses = [(); 2].map(|()| serve_all("127.0.0.1:0".parse().expect("an address"), &room));
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(addresses[0]).await.expect("a connection"));
    }
    probes("the other listener", addresses[1]).await;
    // Those that had to go have been told.
    let mut ended = 0;
    for stream in &mut silent {
        let end = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut [0])).await;
        ended += usize::from(matches!(end, Ok(Ok(0) | Err(_))));
    }
    assert!(ended >= 12, "{ended}");
}
