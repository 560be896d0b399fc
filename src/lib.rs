//! `wikicap-pipeline` streams an image/caption corpus that is far larger than the machine through a frozen vision
//! transformer, trains a caption head on the features and writes a ranked submission. It works within a memory limit and
//! a disk limit, and resumes exactly after any interruption.
//!
//! This page is the map of the code: read it first, then the module that you need.
//!
//! # Data flow
//!
//! ```text
//!  caption list ─► classes ┐
//!  pairs (TSV) ─► url → class ids (join index)            stage catalog: corpus, catalog, chunk::tables
//!                                │
//!  image shards ─► gunzip ─► rows ─► filter ─► blocks of rows          up to four shards side by side; the first row of a shard with
//!     objects       objects   corpus  catalog         │                a URL is kept, and counts unless an earlier shard has it
//!                                  base64 ─► decode ─► resize          CPU pool, results in input order; with `train.views = k`,
//!                                             decode  │                k random crops of each training image
//!                              pixel chunks in the scratch spool       chunk::spool (durable when they are the product)
//!                                                     │
//!                                   ViT forward, frozen                model, on the device thread; several batches in flight
//!                                                     │
//!                              feature chunks + journal entry          chunk::features, chunk::journal
//!                                                     │
//!  captions ─► tokens ─► text encoder, frozen ─► vectors               model::text, for a text or paired head
//!                                                     │
//!     sample order ─► SGD or AdamW, or closed form ─► checkpoints      train, one head or a sweep
//!                                                     │
//!     test images, through the same stream ─► top k ─► submission      predict
//! ```
//!
//! Several processes can share the images: each streams the shards of its part, and the last one trains and predicts
//! (`pipeline::part`). Stages run one after the other. Each is a small graph of bounded channels, and [`pipeline`] is the
//! only module that wires them. One journal entry commits an artefact; it is created, if absent, after the artefact's
//! files are durable.
//!
//! [`telemetry`] makes a run observable: stage progress, time by part and bytes in flight. The terminal, `status.json`,
//! Prometheus and the report read the same snapshots; `events/` records what happened.
//!
//! # Allowed imports
//!
//! | module | contains | may import |
//! | --- | --- | --- |
//! | [`types`] | settings and values that several modules share; a leaf | – |
//! | [`config`] | two TOML files → one checked configuration; pure | `types` |
//! | [`runtime`] | bounded channels, byte budget, CPU pool, device thread, buffer pool, shutdown, limits of the container | `types` |
//! | [`telemetry`] | stage progress and timers | – |
//! | [`objects`] | inputs by name and glob: listing, ranged reads, decompression, retries | `runtime` |
//! | [`run_dir`] | the durable run directory, local or on S3: complete files, lease, event log | `objects`, `runtime` |
//! | [`hf_hub`] | checkpoints of the Hugging Face hub and their cache; streamed data sets | `objects`, `run_dir`, `types` |
//! | [`corpus`] | the published files as typed rows; no I/O | – |
//! | [`catalog`] | captions → classes, URL → class ids, duplicate URLs | `types` |
//! | [`decode`] | image bytes → pixels; synchronous and pure | `types` |
//! | [`device`] | available devices, probed in a process of their own; the kernel cache | `types` |
//! | `card` | memory, launches and products of own CUDA kernels; a leaf; burn's `CubeCL` | – |
//! | [`chunk`] | pixel and feature chunks, journal, duplicates, scratch spool, quarantine, catalog tables | `objects`, `run_dir`, `runtime`, `types` |
//! | [`model`] | Hugging Face checkpoint → features; captions → vectors; burn | `card`, `types` |
//! | [`caption`] | generated captions against references: BLEU, METEOR, `CIDEr` | – |
//! | [`predict`] | logits → ranked captions → submission; metrics; burn in the scorer | – |
//! | [`train`] | heads, targets, schedule, sample order, optimisers, closed-form fits, checkpoints; burn in the trainers | `card`, `predict`, `types` |
//! | [`view`] | charts and pages as text, in one design; pure | – |
//! | [`sample`] | renders a synthetic corpus and a tiny checkpoint in the published layout | – |
//! | [`pipeline`] | the stages and their wiring; supervision, manifest, report | all of the above but `sample` |
//! | [`bench`](mod@bench) | measurements of reading, decoding and the device; models of larger machines | `pipeline` and all that it may import |
//! | [`search`] | exact search over vectors on scratch disk | `runtime`, `types` |
//! | [`explore`] | pictures, captions and search of a run; reads runs and never writes | `pipeline` and what it may import but `hf_hub`, `runtime`, `telemetry`; `search` |
//! | [`serve`] | the page about runs, over HTTP; reads run directories and never writes | `chunk`, `config`, `explore`, `objects`, `pipeline`, `run_dir`, `runtime`, `view` |
//! | [`init`](mod@init) | files of unknown kind → a pipeline file | `config`, `corpus`, `objects`, `pipeline`, `types` |
//! | [`cli`] | arguments, progress, printing, exit codes; the only module that prints | `bench`, `caption`, `config`, `device`, `explore`, `init`, `objects`, `pipeline`, `predict`, `run_dir`, `runtime`, `sample`, `serve`, `telemetry`, `types` |
//!
//! `tests/it/layering.rs` holds this table. burn stays inside `card`, `model`, `train`, `predict` and the device worker of
//! `pipeline`. Two modules serve tests alone: `fuzz` damages input, `reference` compares with other implementations.
//!
//! # Promises
//!
//! 1. **Same bytes**: equal inputs, configuration and seed give equal chunks and, on the CPU, equal weights, for any number
//!    of workers and any number of kills. The chunks of a shard depend on that shard alone, which decides where blocks,
//!    batches and chunks end. The pool returns results in order. A URL counts once, at its first kept row in listing
//!    order ([`chunk::duplicates`]). Seed and epoch determine the training order.
//! 2. **Every row is accounted for**: rows read = kept + quarantined + skipped, per shard, checked at the end.
//! 3. **A chunk exists if and only if its journal entry does** ([`chunk`]).
//! 4. **Bounded**: [`runtime::ByteBudget`] limits bytes between stages, [`chunk::spool`] limits scratch disk, and every
//!    channel has a capacity.
//! 5. **One generation**: artefacts carry a hash of everything they depend on; a changed key is refused by name.
//! 6. **One bad row never stops a run**; too many do (`limits.max_bad_fraction`).
//! 7. **Only `run.dir` and the scratch directory are written**, the hub's cache when the checkpoint comes from the hub, and
//!    compiled kernels below `WIKICAP_CACHE` where that is set.

pub mod bench;
pub mod caption;
mod card;
pub mod catalog;
pub mod chunk;
pub mod cli;
pub mod config;
pub mod corpus;
pub mod decode;
pub mod device;
pub mod explore;
#[cfg(test)]
mod fuzz;
pub mod hf_hub;
pub mod init;
pub mod model;
pub mod objects;
pub mod pipeline;
pub mod predict;
#[cfg(test)]
mod reference;
pub mod run_dir;
pub mod runtime;
pub mod sample;
pub mod search;
pub mod serve;
pub mod telemetry;
pub mod train;
pub mod types;
pub mod view;
