//! The command line; every flag also as SHUNT_ variable.
