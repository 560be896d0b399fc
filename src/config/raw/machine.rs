//! The machine file: what this machine may use.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::super::value::{Bytes, MemoryLimit, Span};
use crate::types::{DeviceKind, KernelChoice};

/// A machine file: where to run it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawMachine {
    /// Memory, disk and threads that the run may use.
    pub(in crate::config) limits: RawLimits,
    /// Scratch disk, whose content may be lost with the machine.
    pub(in crate::config) scratch: RawScratch,
    /// Device of the model.
    pub(in crate::config) device: RawDevice,
    /// Access to object stores.
    pub(in crate::config) store: RawStore,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawLimits {
    /// Bytes in flight between stages, all together: images, features in memory, held-out images, caption vectors. The join index
    /// (12 bytes per labelled row), the head and the model come on top. On a GPU with own kernels, two batches of images a stream are
    /// counted only while images stream, but their memory, 120 to 300 MiB, stays pinned until the process ends.
    /// "auto": half of what the container or the machine has, but at least 640 MiB (or all but 48 MiB, if that is less) and at
    /// most 2 GiB. A value over what the container or the machine has is refused.
    pub(in crate::config) memory: MemoryLimit,
    /// Scratch disk for decoded pixel chunks, which lets decoding run ahead of the model. At least two chunks.
    pub(in crate::config) disk: Bytes,
    /// Threads that decode images, at most 1024. 0: one per core, or per whole core of the container's CPU quota.
    pub(in crate::config) cpu_workers: u32,
    /// Share of a shard's wanted rows that may be unusable before the run stops. It is judged after 1,000 rows.
    pub(in crate::config) max_bad_fraction: f64,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self { memory: MemoryLimit::Auto, disk: Bytes::mib(20 * 1024), cpu_workers: 0, max_bad_fraction: 0.05 }
    }
}

/// `[scratch]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawScratch {
    /// Directory for pixel chunks and compiled GPU kernels, on a local disk. Each run has its own folder in it. Empty:
    /// `scratch` inside `run.dir`, or the system's temporary directory where `run.dir` is on S3. The environment variable
    /// `WIKICAP_CACHE` names another directory for the kernels, which several runs may share.
    pub(in crate::config) dir: String,
}

/// `[device]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawDevice {
    /// `auto`, `cpu` or `cuda`. `auto` uses CUDA where a driver, NVRTC and the toolkit's headers are found, else the CPU.
    pub(in crate::config) kind: DeviceKind,
    /// Index of the GPU, where there are several.
    pub(in crate::config) index: u32,
    /// Images in one forward pass, at most 65,536. 0: chosen, on a GPU by its free memory. Another batch size may change the last
    /// bits of features.
    pub(in crate::config) batch_size: u32,
    /// `auto` or `burn`: kernels that compute features, train classifiers on a GPU, and compute caption vectors on a CPU. `auto`
    /// takes this program's own, where they cover the model, and burn's otherwise; the log names them. On a GPU they need
    /// capability 8.0 and bf16; classifiers also need features with a multiple of 8 values. On a CPU they need AVX2 or NEON.
    /// The two round differently, so another choice changes the last bits of all results.
    pub(in crate::config) kernels: KernelChoice,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(in crate::config) struct RawStore {
    /// URL of an S3-compatible endpoint, for example `http://minio:9000`. Empty: `AWS_ENDPOINT_URL`, or AWS itself. Credentials
    /// come from the environment, the AWS profile or the machine's metadata, never from this file.
    pub(in crate::config) endpoint: String,
    /// Time for which a failing request is retried before the run stops. Finished work is kept. Earlier name: `patience`.
    #[serde(alias = "patience")]
    pub(in crate::config) retry_budget: Span,
    /// Time without a byte after which a request is given up and made again. An upload has one more second for each 64 KiB.
    /// Earlier name: `silence`.
    #[serde(alias = "silence")]
    pub(in crate::config) read_timeout: Span,
}

impl Default for RawStore {
    fn default() -> Self {
        Self { endpoint: String::new(), retry_budget: Span::seconds(300), read_timeout: Span::seconds(20) }
    }
}
