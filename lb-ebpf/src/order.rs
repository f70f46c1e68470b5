//! The order of loads, where the processor does not keep it.
//!
//! x86-64 loads in the order of the program. arm64 does not, unless the address of a load depends on what an earlier one
//! brought. BPF has no fences, its load-acquire came with Linux 6.15, and an atomic operation would write the line. So
//! addresses are made to depend: `x & 0` adds nothing to a pointer, and the verifier knows that; but the JIT emits the AND like
//! any other, and the processor waits for x, whatever it is combined with. <https://elixir.bootlin.com/linux/v6.1/source/arch/arm64/net/bpf_jit_comp.c#L787>
//! Both are instructions of assembler here, which no compiler looks into.

use lb_common::addr::Port;

/// Whether the processor loads in the order of the program.
pub const KEPT: bool = cfg!(bpf_target_arch = "x86_64");

/// `pointer`: what is loaded through it is loaded after `loaded` was.
///
/// Where `loaded` is to be compared with something as a whole, this comes first: the compiler takes equal values for
/// each other.
#[inline(always)]
pub fn pointer_after<T>(loaded: u64, pointer: *mut T) -> *mut T {
    if KEPT { pointer } else { after(loaded, pointer as u64) as *mut T }
}

/// `port`: a look-up of it loads after `loaded` was.
#[inline(always)]
pub fn port_after(loaded: u64, port: Port) -> Port {
    if KEPT { port } else { Port::from_be16(after(loaded, u64::from(port.to_be16())) as u16) }
}

/// `value`, depending on `loaded`.
#[inline(always)]
fn after(loaded: u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: arithmetic on registers that leaves the value what it was.
    unsafe {
        core::arch::asm!(
            "{nothing} = {loaded}",
            "{nothing} &= 0",
            "{value} += {nothing}",
            nothing = out(reg) _,
            loaded = in(reg) loaded,
            value = inout(reg) value,
            options(nostack)
        );
    }
    value
}

/// A value that depends on all of these, and so on the loads that brought them.
#[inline(always)]
pub fn all_of<const N: usize>(words: [u64; N]) -> u64 {
    words.into_iter().fold(0, |all, word| all | word)
}
