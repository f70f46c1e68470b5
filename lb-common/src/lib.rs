//! What Shunt decides about packets and Services.
//!
//! `frame → parse → service → flow → ring → rewrite → verdict` lives in [`datapath`], read its table
//! first. The kernel/user contract is [`abi`], consistent hashing is [`maglev`], bytes are [`wire`].
//!
//! Deliberately absent: IO, clocks, allocation, `unsafe`, and any knowledge of BPF or Kubernetes. The
//! same code runs in the kernel (through lb-ebpf), in tests on the host, and in the agent.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod addr;
pub mod datapath;
pub mod maglev;
pub mod wire;
