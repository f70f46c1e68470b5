//! Kubernetes objects to the model, with every problem named. Total, no IO.
