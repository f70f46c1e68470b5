//! Names for people, kept beside the numbers so that `shunt get` needs no agent.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// UTF-8 text of at most `N` bytes, the rest zero. Longer text is cut at a character boundary.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Text<const N: usize>([u8; N]);

impl<const N: usize> Text<N> {
    /// The text, cut to `N` bytes.
    pub fn new(text: &str) -> Self {
        let mut end = text.len().min(N);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; N];
        for (to, from) in bytes.iter_mut().zip(text.as_bytes().iter().take(end)) {
            *to = *from;
        }
        Self(bytes)
    }

    /// The text up to the first zero byte; what is not UTF-8 reads as empty.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(N);
        self.0.get(..end).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or("")
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// Which Service port an id stands for. Kubernetes limits each of the three to 63 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ServiceName {
    /// Namespace of the Service.
    pub namespace: Text<64>,
    /// Name of the Service.
    pub name: Text<64>,
    /// Name of the port; empty when it has none.
    pub port: Text<64>,
    /// Protocol number of the port.
    pub proto: u8,
    pad: [u8; 7],
}

impl ServiceName {
    /// The value with its padding zeroed.
    pub fn new(namespace: &str, name: &str, port: &str, proto: u8) -> Self {
        Self {
            namespace: Text::new(namespace),
            name: Text::new(name),
            port: Text::new(port),
            proto,
            pad: [0; 7],
        }
    }
}

/// Which pod, on which node, a backend id stands for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BackendName {
    /// `targetRef.name` of the endpoint; empty for endpoints written by hand.
    pub target: Text<64>,
    /// `nodeName` of the endpoint; empty when not said.
    pub node: Text<64>,
}

const _: () = assert!(size_of::<ServiceName>() == 200);
const _: () = assert!(size_of::<BackendName>() == 128);
