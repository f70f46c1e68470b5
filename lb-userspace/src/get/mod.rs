//! `shunt get`: what the kernel holds now, read from the pinned maps.
pub mod debug;
/// stub
pub fn run(_args: &crate::args::GetArgs) -> Result<(), crate::exit::Error> {
    Ok(())
}
