//! /healthz, /livez and /metrics over HTTP.
