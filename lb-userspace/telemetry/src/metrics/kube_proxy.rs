//! kube-proxy's metrics, under its names, where they mean the same.
//!
//! Left out, since there is nothing here they could tell of: `sync_proxy_rules_iptables_total`, `…_last`,
//! `…_restore_failures_total` and `…_partial_restore_failures_total`,
//! `sync_proxy_rules_nftables_sync_failures_total` and `…_cleanup_failures_total`,
//! `iptables_ct_state_invalid_dropped_packets_total`, `iptables_localhost_nodeports_accepted_packets_total`
//! (no rules of netfilter are written), `conntrack_reconciler_sync_duration_seconds` and
//! `…_deleted_entries_total` (a UDP flow is checked against its endpoint with every packet, so nothing has to
//! be cleaned up), and what the Go runtime and its API client tell of themselves.

use std::fmt;

use lb_control::model::Family;
use lb_control::reconcile::NoLocalEndpoints;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;

use super::{Labels, NO_LABELS, Writer};
use crate::recorder::{Question, Recorder};

/// Everything kube-proxy would tell, at one moment.
#[derive(Clone, Debug)]
pub(super) struct KubeProxy {
    pub(super) recorder: Recorder,
    /// When the maps last took all there was, in seconds since 1970; 0 before the first time.
    pub(super) last_sync: f64,
    pub(super) no_local_endpoints: NoLocalEndpoints,
}

impl Collector for KubeProxy {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_histograms(&mut encoder)?;
        let mut writer = Writer(encoder);
        let both = |value: f64| Family::ALL.map(|family| ([("ip_family", family.label())], value));
        writer.gauges(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "The last time proxy rules were successfully synced",
            both(self.last_sync),
        )?;
        writer.gauges(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "The last time a sync of proxy rules was queued",
            both(self.recorder.queued_at()),
        )?;
        let policies =
            [("internal", self.no_local_endpoints.internal), ("external", self.no_local_endpoints.external)];
        let counts = policies.into_iter().flat_map(|(policy, counts)| {
            Family::ALL.map(|family| {
                ([("ip_family", family.label()), ("traffic_policy", policy)], counts[family as usize] as f64)
            })
        });
        writer.gauges(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Number of services with a Local traffic policy and no endpoints",
            counts,
        )?;
        self.encode_changes(&mut writer)?;
        self.encode_answers(&mut writer)
    }
}

impl KubeProxy {
    fn encode_histograms(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        // One loop serves both families, so each has taken as long as the other.
        let [all, full, partial] = self.recorder.durations().map(|histogram| [histogram.clone(), histogram]);
        let programming = Family::ALL.map(|family| self.recorder.programming(family));
        let histograms: [(&str, &str, [Histogram; 2]); 4] = [
            ("kubeproxy_sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds", all),
            (
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for full resyncs",
                full,
            ),
            (
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for partial resyncs",
                partial,
            ),
            (
                "kubeproxy_network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
                programming,
            ),
        ];
        for (name, help, histograms) in histograms {
            let mut family_encoder = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (family, histogram) in Family::ALL.into_iter().zip(histograms) {
                let labels = [("ip_family", family.label())];
                histogram.encode(family_encoder.encode_family(&Labels(&labels))?)?;
            }
        }
        Ok(())
    }

    fn encode_changes(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let (services, services_pending) = self.recorder.service_changes();
        let (endpoints, endpoints_pending) = self.recorder.endpoint_changes();
        let pending = [
            (
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "Pending proxy rules Service changes",
                services_pending,
            ),
            (
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "Pending proxy rules Endpoint changes",
                endpoints_pending,
            ),
        ];
        for (name, help, value) in pending {
            writer.gauges(name, help, [(NO_LABELS, value as f64)])?;
        }
        let totals = [
            (
                "kubeproxy_sync_proxy_rules_service_changes",
                "Cumulative proxy rules Service changes",
                services,
            ),
            (
                "kubeproxy_sync_proxy_rules_endpoint_changes",
                "Cumulative proxy rules Endpoint changes",
                endpoints,
            ),
        ];
        for (name, help, value) in totals {
            writer.counters(name, help, [(NO_LABELS, value)])?;
        }
        Ok(())
    }

    fn encode_answers(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let questions = [
            ("kubeproxy_proxy_healthz", "Cumulative proxy healthz HTTP status", Question::Healthz),
            ("kubeproxy_proxy_livez", "Cumulative proxy livez HTTP status", Question::Livez),
        ];
        for (name, help, question) in questions {
            let answers = self.recorder.answers(question).map(|(code, count)| (code.to_string(), count));
            let answers = answers.iter().map(|(code, count)| ([("code", code.as_str())], *count));
            writer.counters(name, help, answers)?;
        }
        Ok(())
    }
}
