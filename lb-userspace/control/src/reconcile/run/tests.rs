//! The loop with a real source channel and a store in memory.

use serde_json::json;
use tokio::sync::oneshot;

use super::*;
use crate::model::Kind;
use crate::reconcile::Config;
use crate::source::Object;
use crate::source::objects::{applied, reset, service};
use crate::store::memory::MemStore;

fn addresses(node_ports: &[&str]) -> NodeAddresses {
    let parse = |text: &&str| text.parse().unwrap();
    NodeAddresses {
        node_ports: node_ports.iter().chain(&["127.0.0.1"]).map(parse).collect(),
        ..NodeAddresses::default()
    }
}

struct Loop {
    events: mpsc::Sender<Event>,
    addresses: watch::Sender<NodeAddresses>,
    status: watch::Receiver<Status>,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Reconciler>,
}

fn start(store: &MemStore) -> Loop {
    let (events, receiver) = mpsc::channel(16);
    let (addresses, node_addresses) = watch::channel(addresses(&[]));
    let (sender, status) = watch::channel(Status::default());
    let (stop, stopped) = oneshot::channel::<()>();
    let reconciler = Reconciler::new(Config::new("node-a", Some(1)), Box::new(store.clone()));
    let shutdown = async move {
        let _ = stopped.await;
    };
    let (_, listeners) = watch::channel(Arc::default());
    let inputs = Inputs { events: receiver, node_addresses, listeners };
    let task = tokio::spawn(run(reconciler, inputs, sender, shutdown));
    Loop { events, addresses, status, stop, task }
}

impl Loop {
    async fn until(&mut self, done: impl FnMut(&Status) -> bool) -> Status {
        let wait = self.status.wait_for(done);
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .expect("in time")
            .expect("the loop runs")
            .clone()
    }
}

#[tokio::test]
async fn changes_reach_the_store_and_the_status() {
    let store = MemStore::new(10_000);
    let mut running = start(&store);
    let spec = json!({"ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
    running.events.send(reset(Kind::Service, [service("a", "10.96.0.1", spec)])).await.unwrap();
    running.events.send(reset(Kind::EndpointSlice, [])).await.unwrap();
    assert_eq!(store.take_ops(), []);
    running.events.send(Event::Synced).await.unwrap();
    let status = running.until(|status| status.syncs == 1).await;
    assert!(status.synced && status.last_success.is_some() && status.queued_since.is_none());
    assert_eq!(status.stats.frontends, 2);
    running.addresses.send(addresses(&["192.0.2.1"])).unwrap();
    let status = running.until(|status| status.stats.service_entries == [5, 0]).await;
    assert!(status.problems.is_empty());
    running.events.send(applied(service("b", "127.0.0.1", json!({})))).await.unwrap();
    let status = running.until(|status| !status.problems.is_empty()).await;
    assert!(status.problems[0].message.contains("loopback"), "{}", status.problems[0]);
    running.stop.send(()).unwrap();
    let reconciler = running.task.await.unwrap();
    assert_eq!(reconciler.stats().frontends, 2);
    assert_eq!(store.contents().services.len(), 5, "the end of the agent takes nothing out");
}

/// Before the addresses go by the Node, those of a former agent would be taken out for a moment.
#[tokio::test]
async fn the_first_flush_waits_for_addresses_that_go_by_the_node() {
    let store = MemStore::new(10_000);
    let mut running = start(&store);
    let ip = "192.0.2.9";
    let node = json!({"metadata": {"name": "node-a"}, "status": {"addresses": [{"type": "InternalIP", "address": ip}]}});
    let node = Object::Node(Box::new(serde_json::from_value(node).unwrap()));
    running.events.send(reset(Kind::Node, [node])).await.unwrap();
    running.events.send(reset(Kind::Service, [service("a", "10.96.0.1", json!({}))])).await.unwrap();
    running.events.send(Event::Synced).await.unwrap();
    let began = Instant::now();
    running.until(|status| status.node.is_some() && status.synced).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(running.status.borrow().syncs, 0);
    let late = NodeAddresses { from_node_object: vec![ip.parse().unwrap()], ..addresses(&[ip]) };
    running.addresses.send(late).unwrap();
    running.until(|status| status.syncs == 1).await;
    assert!(began.elapsed() < SORTING_OUT, "at once when they have come");
}

#[tokio::test]
async fn a_store_that_refuses_is_tried_again_by_itself() {
    let store = MemStore::new(10_000);
    let mut running = start(&store);
    running.events.send(reset(Kind::Service, [service("a", "10.96.0.1", json!({}))])).await.unwrap();
    store.fail_after(1);
    running.events.send(Event::Synced).await.unwrap();
    let status = running.until(|status| status.failures == 1).await;
    assert!(status.error.is_some() && status.queued_since.is_some());
    let status = running.until(|status| status.syncs == 1).await;
    assert!(status.error.is_none() && status.queued_since.is_none());
    // A frontend, its ClusterIP as a whole, and a loopback address.
    assert_eq!(store.contents().services.len(), 3);
    assert_eq!(store.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn it_ends_with_its_source() {
    let running = start(&MemStore::new(1000));
    drop(running.events);
    tokio::time::timeout(Duration::from_secs(10), running.task).await.expect("in time").unwrap();
}
