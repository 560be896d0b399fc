//! Tests of the emulated card through the functions that its driver is made of.

mod broken_kernels;
mod rig;
mod streams;
