//! Shunt's kernel programs. The binary of this package is the object file; the library exists so that
//! host tools can check the package.
#![no_std]
