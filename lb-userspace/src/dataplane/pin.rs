//! Names in the pin directory.
