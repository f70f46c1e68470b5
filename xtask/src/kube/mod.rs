//! A real Kubernetes API server for tests: where its programs come from, and how it is run.
//!
//! ```no_run
//! use xtask::kube::{ApiServer, Assets, Identity, Options};
//!
//! let server = ApiServer::start(&Assets::find_or_build()?, Options::default())?;
//! server.apply("{ apiVersion: v1, kind: Namespace, metadata: { name: demo } }")?;
//! let for_the_agent = server.kubeconfig(Identity::Agent);
//! # miette::Result::<()>::Ok(())
//! ```

mod api_server;
mod assets;
mod credentials;
mod go;
mod modules;
mod program;
mod requests;
mod writer;

pub use api_server::{ApiServer, Options};
pub use assets::Assets;
pub use credentials::Identity;
pub use requests::{Request, Verb};
pub use writer::{Writer, Written};
