//! map
pub mod chunk;
pub mod config;
pub mod flow;
pub mod store;
