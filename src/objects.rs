//! Input objects: listing, and reads in bounded ranges pinned to one version.
//!
//! An object is named by a local path or a URL (`s3://`, `gs://`, `az://`, `https://`, and schemes of a `Provider`).
//! [`Store::list`] expands globs, brace ranges and lists of names.
//! [`Store::open`] reads an object front to back in ranges of 4 MiB (256 KiB for local files), two at a time. A range is
//! retried until it is complete, and refused when the object is no longer the version that was listed. Objects in gzip
//! (with any number of members) and zstd are recognised by their first bytes and decompressed on the fly; checksums and
//! lengths are verified.
//!
//! | part | does |
//! | --- | --- |
//! | `store` | finds, opens and fingerprints objects |
//! | `object` | the listed version of one object |
//! | `client` | URL → client, credentials, timeouts |
//! | `provider` | URL schemes that other modules implement |
//! | `profile` | keys, region and endpoint of the AWS profile |
//! | `web` | HTTP client of web servers |
//! | `http_error` | failed requests: status, whether to retry, message |
//! | `http_retry` | waits between attempts, and when to give up |
//! | `read` | one version of an object in ranges |
//! | `read_stats` | bytes received and time waited |
//! | `gzip` | decompresses gzip |
//! | `names` | brace ranges and lists → names and patterns |
//! | `folder` | the files below a folder, and their fingerprint |
//! | `sniff` | first bytes → file format |
//! | `glob` | patterns → objects |
//! | `browse` | one folder of a remote store |
//! | `local_files` | the files below a local directory |
//! | `listing` | the objects under a prefix, page by page |
//! | `traffic` | counters of requests and bytes |
//!
//! Durable directories are in [`crate::run_dir`]. Nothing here knows image formats or burn.

mod browse;
pub(crate) mod client;
mod credentials;
mod error;
mod folder;
#[cfg(test)]
mod fuzz;
mod glob;
mod gzip;
pub(crate) mod http_error;
pub(crate) mod http_retry;
pub(crate) mod listing;
mod local_files;
mod names;
mod object;
mod profile;
mod provider;
pub(crate) mod read;
mod read_stats;
mod sniff;
mod store;
mod traffic;
mod web;

pub use browse::Contents;
pub use client::{StoreSettings, install_tls_provider};
pub use credentials::describe_s3_credentials;
pub use error::StoreError;
pub use local_files::{LocalFiles, walk};
pub use object::{Folder, Object};
pub(crate) use provider::Provider;
pub use read_stats::ReadStats;
pub use sniff::{Content, FileFormat, sniff};
pub use store::{Reader, Store, explain_read};
pub use traffic::{Traffic, TrafficSnapshot};
