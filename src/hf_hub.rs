//! Checkpoints of the Hugging Face hub, in the cache that all its clients share, and data sets, which are streamed.
//!
//! [`Hub::fetch`] completes a snapshot and returns its directory. It uses what Python's `huggingface_hub` downloaded, and
//! Python finds what it downloads. A file gets its name once its size and hash match those that the hub states; until then
//! it is a partial file that the next process resumes. [`Hub::find_missing`] says what is missing and writes nothing.
//! [`Hub::cached`] sends no request.
//!
//! Only the files of a checkpoint are downloaded: `config.json`; `model.safetensors`, or its index with the shards; for
//! images `preprocessor_config.json`; for text encoders `tokenizer.json` and the files of sentence-transformers. All come
//! from one commit. If the hub cannot be asked, the newest complete commit in the cache is used, with a warning. Processes
//! exclude each other with a file lock. On a network file system without locks they may damage each other's partial files;
//! the hash then reveals it.
//!
//! Files of data sets, `hf://datasets/ORG/NAME[@REVISION]/PATH`, are read in ranges and not stored. `Datasets` makes them
//! inputs like any other.
//!
//! The crate `hf-hub` (1.0) shares this cache, but restarts a broken download at byte 0, publishes files without comparing
//! their hash, and has no offline mode.
//!
//! | part | does |
//! | --- | --- |
//! | `hub` | compares the cache with the hub and downloads what is missing |
//! | `repo` | name, revision and type of a repository |
//! | `settings` | reads the environment: endpoint, cache, token, offline mode |
//! | `cache` | the layout on disk |
//! | `http` | requests, redirects and the meaning of answers |
//! | `headers` | parses the headers of answers |
//! | `blob` | downloads one file: resumes it and retries |
//! | `partial_file` | hashes, verifies and publishes a file |
//! | `progress` | progress of a download |
//! | `dataset` | files of data sets: names, listings, ranged reads |

mod blob;
mod cache;
mod dataset;
mod headers;
mod http;
mod hub;
mod partial_file;
mod progress;
mod repo;
mod settings;

pub(crate) use dataset::Datasets;
pub use hub::{Hub, Missing};
pub use progress::Download;
pub use repo::{Repo, RepoKind};
