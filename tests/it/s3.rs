//! Inputs and runs on S3: a real server of that protocol in the test process, with faults put between it and the program.

mod faults;
mod kills;
mod lease;
mod lists;
mod reads;
mod runs;
mod server;
