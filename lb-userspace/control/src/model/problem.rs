//! What is wrong with an object, said so that its author can put it right.

use std::fmt;
use std::sync::Arc;

/// The kinds of object we read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// `v1 Service`.
    Service,
    /// `discovery.k8s.io/v1 EndpointSlice`.
    EndpointSlice,
    /// `v1 Endpoints`, of manifests alone.
    Endpoints,
    /// `v1 Node`.
    Node,
    /// `networking.k8s.io/v1 ServiceCIDR`.
    ServiceCidr,
}

impl Kind {
    /// The name manifests use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Endpoints => "Endpoints",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Names one object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectRef {
    /// What it is.
    pub kind: Kind,
    /// Its namespace; empty for a Node or ServiceCIDR.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ObjectRef {
    /// Names an object. Pass an empty namespace for a Node.
    pub fn new(kind: Kind, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// The place in a manifest that an object or a mistake comes from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Origin {
    /// Path of the file.
    pub file: Arc<str>,
    /// Line, from 1; 0 when the whole file is meant.
    pub line: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 { f.write_str(&self.file) } else { write!(f, "{}:{}", self.file, self.line) }
    }
}

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// The object is right; some of it is not served.
    Notice,
    /// Part of the object is not in force.
    Warning,
    /// The object or file as a whole is not in force.
    Error,
}

impl Severity {
    /// Lower-case word, for logs and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One thing wrong with what we were given.
///
/// Problems are a state, not a stream: the set at any time is what is wrong then. Compare two sets to
/// learn what is new.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Problem {
    /// The object, where it is known.
    pub object: Option<ObjectRef>,
    /// Path of the field, as in `spec.ports[0].port`; empty when no single field is at fault.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
    /// How bad it is.
    pub severity: Severity,
    /// Where in the manifests, when the object came from there.
    pub origin: Option<Origin>,
    /// Reason of the Event, where it is not the one of the severity.
    pub reason: Option<&'static str>,
}

impl Problem {
    /// A problem of an object.
    pub fn of(
        object: &ObjectRef,
        severity: Severity,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            object: Some(object.clone()),
            field: field.into(),
            message: message.into(),
            severity,
            origin: None,
            reason: None,
        }
    }

    /// A problem of a source as a whole.
    pub fn of_source(severity: Severity, message: impl Into<String>) -> Self {
        Self {
            object: None,
            field: String::new(),
            message: message.into(),
            severity,
            origin: None,
            reason: None,
        }
    }

    /// The same, with the reason its Event is to have.
    #[must_use]
    pub fn because(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
        self
    }

    /// The same, with the place in the manifests.
    #[must_use]
    pub fn at(mut self, origin: Option<&Origin>) -> Self {
        self.origin = origin.cloned();
        self
    }
}

/// `demo.yaml:12: Service default/web: spec.ports[0].port: …`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}
