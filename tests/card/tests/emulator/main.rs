//! Tests of the emulated card through the functions that its driver is made of.

mod async_products;
mod blocks;
mod broken_kernels;
mod engine;
mod lanes;
mod limits;
mod rig;
mod streams;
