//! What `--metrics-bind-address` answers.

use std::sync::Arc;

use hyper::StatusCode;
use lb_health::Health;
use lb_health::http::{self, Routes};
use lb_telemetry::metrics::{CONTENT_TYPE, Metrics};
use lb_telemetry::recorder::Question;

/// The paths of `--metrics-bind-address`.
///
/// `/healthz` says `ok` for as long as anybody answers, as kube-proxy's does. `/proxyMode` tells the truth:
/// it is none of kube-proxy's modes.
pub fn metrics(health: Health, metrics: Arc<Metrics>) -> Routes {
    const TEXT: &str = "text/plain; charset=utf-8";
    let plain = |text: &str| Some(http::reply(StatusCode::OK, TEXT, text.to_owned()));
    Arc::new(move |path| match path {
        "/metrics" => Some(http::reply(StatusCode::OK, CONTENT_TYPE, metrics.encode())),
        "/proxyMode" => plain("shunt"),
        "/healthz" => plain("ok"),
        "/livez" => Some(health.reply(Question::Livez)),
        _ => None,
    })
}
