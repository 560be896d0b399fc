//! Inputs and run directories on S3: a real S3 server in the test process, with faults injected in front of it.

pub(crate) mod faults;
mod kills;
mod lease;
mod lists;
mod page;
mod parts;
mod reads;
mod runs;
pub(crate) mod server;
