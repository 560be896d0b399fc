//! Run directory: complete files under names, on a local disk or on S3.
//!
//! A name holds a complete file or nothing ([`Directory`]). A process takes a lock before it writes: with `flock` on a
//! local disk, with a lease object on S3. One lock covers the whole directory; others cover parts of it, so that several
//! processes can write different files at once.
//!
//! | part | does |
//! | --- | --- |
//! | [`Directory`] | complete files under names, local (`local`) or on S3 (`s3`, with its `lease`) |
//! | [`Log`] | append-only event files |
//! | [`Process`] | identifies a process across hosts |
//! | [`failpoint`] | named places at which a test kills the process |

mod directory;
pub mod failpoint;
mod lease;
pub(crate) mod local;
mod log;
mod process;
mod s3;
mod space;

pub use directory::{Directory, LocalCopy, Lock};
pub use local::LocalDirectory;
pub use log::Log;
pub use process::{Holder, Process, boot_id};
pub use space::{check_writable, free_bytes};
