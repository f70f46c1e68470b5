//! Whether the API server can be reached: what becomes of each request, and what is to be said of it.
//!
//! Seen at the requests, since a watch that goes on after an outage tells nothing before something changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::{Request, Response, Uri};
use kube::client::Body;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tower::{BoxError, Layer, Service};

use super::resource;
use crate::model::Kind;
use crate::source::ConnectionErrors;

/// An outage is over when the API server has answered and nothing has failed for so long: longer than the longest pause
/// between two tries, so that one that answers now and then is one outage.
pub(super) const CALM: Duration = Duration::from_secs(6);

/// What requests have shown so far.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Why the first request failed since the API server last answered, and when the last did.
    failed: Option<(Arc<str>, Instant)>,
    /// It has answered since.
    answered: bool,
    /// How many watches of each kind it has accepted.
    watches: BTreeMap<Kind, u64>,
}

/// Looks at every request of a client.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    seen: Arc<watch::Sender<Seen>>,
    errors: ConnectionErrors,
}

impl Reach {
    /// Counts what fails, and tells the other end.
    pub(super) fn new(errors: ConnectionErrors, calm: Duration) -> (Self, Connection) {
        let (sender, seen) = watch::channel(Seen::default());
        let connection = Connection { seen, calm, cause: None, watches: BTreeMap::new() };
        (Self { seen: Arc::new(sender), errors }, connection)
    }

    fn failed(&self, error: &(dyn std::error::Error + 'static)) {
        self.errors.count();
        tracing::debug!("a request to the API server failed: {}", causes(error));
        self.seen.send_modify(|seen| {
            let first = seen.failed.take().filter(|_| !seen.answered).map(|(cause, _)| cause);
            let cause = first.unwrap_or_else(|| causes(error).into());
            seen.failed = Some((cause, Instant::now()));
            seen.answered = false;
        });
    }

    /// `accepted`: the kind whose watch begins with this answer.
    fn answered(&self, accepted: Option<Kind>) {
        self.seen.send_if_modified(|seen| {
            let news = seen.failed.is_some() && !seen.answered;
            seen.answered = true;
            if let Some(kind) = accepted {
                *seen.watches.entry(kind).or_default() += 1;
            }
            news || accepted.is_some()
        });
    }
}

/// The kind whose watch a request begins.
fn watched(url: &Uri) -> Option<Kind> {
    let is_watch = url.query()?.split('&').any(|part| matches!(part, "watch=true" | "watch=1"));
    let last = url.path().rsplit('/').next().filter(|_| is_watch)?;
    [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr]
        .into_iter()
        .find(|kind| resource(*kind).1 == last)
}

impl<S> Layer<S> for Reach {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, reach: self.clone() }
    }
}

/// A client that is looked at.
#[derive(Clone, Debug)]
pub(super) struct Observed<S> {
    inner: S,
    reach: Reach,
}

impl<S, B> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<B>, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let reach = self.reach.clone();
        let watched = watched(request.uri());
        let look = move |result: &Result<Response<B>, BoxError>| match result {
            Ok(response) => reach.answered(watched.filter(|_| response.status().is_success())),
            Err(error) => reach.failed(&**error),
        };
        self.inner.call(request).inspect(look).boxed()
    }
}

/// The connection to the API server, as far as it is worth a word.
#[derive(Debug)]
pub(super) struct Connection {
    seen: watch::Receiver<Seen>,
    calm: Duration,
    cause: Option<Arc<str>>,
    /// Those that were asked for.
    watches: BTreeMap<Kind, u64>,
}

impl Connection {
    /// Why the API server cannot be reached, while that is so.
    pub(super) fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// Kinds of which a watch was accepted since this was asked last.
    pub(super) fn accepted(&mut self) -> Vec<Kind> {
        let now = self.seen.borrow().watches.clone();
        let before = std::mem::replace(&mut self.watches, now);
        let new = |(kind, count): (&Kind, &u64)| (before.get(kind) != Some(count)).then_some(*kind);
        self.watches.iter().filter_map(new).collect()
    }

    /// Ends when there may be something new. May be given up at any time.
    pub(super) async fn changed(&mut self) {
        let Seen { failed, answered, .. } = self.seen.borrow().clone();
        let over = match (&self.cause, failed) {
            (None, Some((cause, _))) if !answered => {
                self.cause = Some(cause);
                return;
            }
            (Some(_), Some((_, at))) if answered => Some(at + self.calm),
            _ => None,
        };
        let over =
            async { if let Some(at) = over { sleep_until(at).await } else { std::future::pending().await } };
        tokio::select! {
            changed = self.seen.changed() => if changed.is_err() { std::future::pending().await },
            () = over => self.cause = None,
        }
    }
}

/// An error with all its causes, each said once.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(10);

    async fn cause_becomes(connection: &mut Connection, expected: Option<&str>) {
        let waiting = async {
            while connection.cause() != expected {
                connection.changed().await;
            }
        };
        tokio::time::timeout(LONG, waiting).await.expect("in time");
    }

    #[tokio::test]
    async fn an_outage_has_one_beginning_one_end_and_a_number_of_errors() {
        let errors = ConnectionErrors::default();
        let (reach, mut connection) = Reach::new(errors.clone(), SHORT);
        reach.failed(&std::io::Error::other("refused"));
        cause_becomes(&mut connection, Some("refused")).await;
        // Another reason is the same outage, and so is an answer with a failure after it.
        reach.failed(&std::io::Error::other("reset"));
        reach.answered(None);
        let began = Instant::now();
        reach.failed(&std::io::Error::other("timed out"));
        assert!(
            tokio::time::timeout(2 * SHORT, async {
                while connection.cause() == Some("refused") {
                    connection.changed().await;
                }
            })
            .await
            .is_err()
        );
        reach.answered(None);
        cause_becomes(&mut connection, None).await;
        assert!(began.elapsed() >= 2 * SHORT);
        assert_eq!(errors.total(), 3);
        // Nothing is left of it.
        let nothing = async {
            loop {
                connection.changed().await;
                assert_eq!(connection.cause(), None);
            }
        };
        assert!(tokio::time::timeout(2 * SHORT, nothing).await.is_err());
    }

    #[tokio::test]
    async fn a_request_that_fails_once_is_counted_and_not_told() {
        let errors = ConnectionErrors::default();
        let (reach, mut connection) = Reach::new(errors.clone(), SHORT);
        reach.failed(&std::io::Error::other("reset"));
        reach.answered(None);
        connection.changed().await;
        assert_eq!((connection.cause(), errors.total()), (None, 1));
    }

    #[tokio::test]
    async fn a_watch_that_is_accepted_is_known() {
        let (reach, mut connection) = Reach::new(ConnectionErrors::default(), SHORT);
        let nodes =
            watched(&Uri::from_static("https://api/api/v1/nodes?limit=500&watch=true&resourceVersion=7"));
        assert_eq!(nodes, Some(Kind::Node));
        assert_eq!(watched(&Uri::from_static("https://api/api/v1/nodes?limit=500")), None);
        assert_eq!(watched(&Uri::from_static("https://api/api/v1/pods?watch=true")), None);
        for _ in 0..2 {
            reach.answered(nodes);
            connection.changed().await;
            assert_eq!(connection.accepted(), [Kind::Node]);
        }
        assert_eq!(connection.accepted(), []);
    }
}
