//! `shunt debug`: what developers ask.
/// stub
pub fn run(_args: &crate::args::DebugArgs) -> Result<(), crate::exit::Error> {
    Ok(())
}
