//! What Shunt decides about packets and Services.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod addr;
pub mod maglev;
