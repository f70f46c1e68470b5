//! Tells users what is wrong with their objects, as Kubernetes Events.
