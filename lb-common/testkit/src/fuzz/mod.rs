//! What fuzzers and random tests share: random traffic, and laws that hold for every packet.
//!
//! `fuzz/` runs [`parser`] and [`Stage::play`] under libFuzzer; `tests/fuzzing.rs` runs them on the fixture
//! list and on many mutations of it; lb-userspace's kernel tests send [`Traffic`] through the
//! programs.

mod damage;
mod dice;
mod laws;
mod parser;
mod script;
mod traffic;

pub use damage::damage;
pub use dice::Dice;
pub use laws::{Laws, Passage, is_untouched};
pub use parser::parser;
pub use script::{PACKET_HOOKS, Stage, packets, scripts};
pub use traffic::Traffic;
