//! A real Kubernetes API server for tests: where its programs come from, and how it is run.
