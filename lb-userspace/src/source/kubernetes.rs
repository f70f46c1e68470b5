//! Reflectors for Service, EndpointSlice and Node: the only user of `kube::Api`.
