//! The run directory: complete files under names, on a local disk or on S3, held by one process at a time.
//!
//! A name either holds a complete file or nothing ([`Directory`]). A process claims the directory before it writes: by
//! `flock` on a local disk, by a lease object on S3.
//!
//! | part | does |
//! | --- | --- |
//! | [`Directory`] | complete files under names, local (`local`) or on S3 (`s3`, with its `lease`) |
//! | [`Log`] | append-only event files |
//! | [`Process`] | identifies a process across hosts |
//! | [`failpoint`] | named instants at which a test kills the process |

mod directory;
pub mod failpoint;
mod lease;
pub(crate) mod local;
mod log;
mod process;
mod s3;

pub use directory::{Directory, LocalCopy, Lock};
pub use local::LocalDirectory;
pub use log::Log;
pub use process::{Process, boot};
