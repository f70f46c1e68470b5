//! `shunt get`: what the kernel holds now.
