//! `wikicap-pipeline` streams an image/caption corpus that is far larger than the machine through a frozen vision
//! transformer, trains a caption head on the features and writes a ranked submission, in bounded memory and disk, and
//! goes on exactly where it stopped.
//!
//! This page is the map: read it, then the module that you came for.
//!
//! # The flow
//!
//! ```text
//!  caption list ─► classes ┐
//!  pairs (TSV) ─► url → class ids (join index)            catalog stage: corpus, catalog, chunk::tables
//!                                │
//!  image shards ─► gunzip ─► rows ─► wanted? ─► blocks of rows        four shards side by side, taking turns by chunks
//!     store          store    corpus   catalog        │               (chunk::schedule); a URL's first row in this order counts
//!                                  base64 ─► decode ─► resize         a pool of workers, results in order; k random
//!                                             decode  │              parts of an image with `train.views = k`
//!                              pixel chunks in the scratch ring       chunk::ring (durable, where they are the product)
//!                                                     │
//!                                   ViT forward, frozen               model, on the device thread; several batches on their way
//!                                                     │
//!                              feature chunks + journal entry         chunk::features, chunk::journal
//!                                                     │
//!  captions ─► tokens ─► text encoder, frozen ─► vectors              model::text, pipeline::texts, for a text head alone
//!                                                     │
//!     order of samples ─► SGD, or contrast with AdamW ─► checkpoints   train, one head or a sweep of them
//!                                                     │
//!     test images, by the same stream ─► evidence ─► top k ─► submission, examples      pipeline::evidence, predict
//! ```
//!
//! The stages run one after the other, each as a small graph of bounded links; [`pipeline`] is the only place that
//! wires them. Every artefact is committed by one journal entry, created if absent once its files are durable.
//!
//! A run is seen from outside through [`flow::Board`]: how far each stage is, where the time of its parts goes, what is in
//! flight. The terminal, `status.json`, Prometheus and the report all read it; `events/` tells what happened.
//!
//! # Who may name whom
//!
//! | module | is | may name |
//! | --- | --- | --- |
//! | [`config`] | two files → raw → checked; pure | – |
//! | [`flow`] | bounded links, byte budget, CPU pool, device thread, stop token, meters and clocks | – |
//! | [`store`] | inputs by name and glob, ranged reads, unpacking; durable directories; the model hub and its cache | `flow` |
//! | [`corpus`] | the published files as typed rows; sans I/O | – |
//! | [`catalog`] | captions → classes, URL → class ids, URLs already taken | – |
//! | [`decode`] | bytes → pixels; synchronous and pure | – |
//! | `device` | which devices there are, by a probe in a process of its own; where kernels are kept | `config` |
//! | [`chunk`] | pixel and feature chunks, their order, journal, scratch ring, quarantine, catalog tables | `config`, `flow`, `store` |
//! | `model` | Hugging Face checkpoint → features; captions → vectors; burn | – |
//! | [`predict`] | logits → ranked captions → submission; metrics; burn in the scorer | – |
//! | [`train`] | head, targets, schedule, order, optimiser, checkpoints; burn in the trainer, for a device | `predict` |
//! | [`sample`] | draws a small corpus and a tiny checkpoint in the published layout | – |
//! | [`pipeline`] | the wiring; supervision, generations, report | all but `cli` and `sample` |
//! | [`cli`] | arguments, progress, printing, exit codes; the only printer | `config`, `device`, `flow`, `pipeline`, `predict`, `sample` |
//!
//! `tests/it/layering.rs` holds this table. burn stays inside `model`, `train`, `predict` and the device's desk in
//! `pipeline`; without the `model` feature none of it is built and the tool preprocesses, checks and evaluates.
//!
//! # Promises
//!
//! 1. **Same bytes**: same inputs, configuration and seed give the same chunks in the same order and, on the CPU, the
//!    same weights, for any number of workers and however often the run was killed. Blocks, batches and chunks are cut
//!    by the input alone, and so is the order in which shards take turns; results of the pool come back in order; the order of training
//!    is a function of seed and epoch.
//! 2. **Every row is accounted for**: rows read = kept + quarantined + skipped, per shard, checked at the end.
//! 3. **A chunk exists if and only if its journal entry does** ([`chunk`]).
//! 4. **Bounded**: bytes between stages by [`flow::ByteBudget`], scratch disk by [`chunk::ring`], links by their capacity.
//! 5. **One generation**: artefacts carry a hash of what they were made from; a changed key is refused by name.
//! 6. **One bad row never stops a run**, and too many do (`limits.max_bad_fraction`).
//! 7. **Nothing outside `run.dir` and the scratch directory is written**, but for the hub's cache where the checkpoint is
//!    one of the hub's.

pub mod catalog;
pub mod chunk;
pub mod cli;
pub mod config;
pub mod corpus;
pub mod decode;
#[cfg(feature = "model")]
pub mod device;
pub mod flow;
#[cfg(test)]
mod fuzz;
#[cfg(feature = "model")]
pub mod model;
pub mod pipeline;
pub mod predict;
pub mod sample;
pub mod store;
pub mod train;
