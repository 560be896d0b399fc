//! Arguments of `bench`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use crate::bench::ingest::ClusterSettings;
use crate::types::{HeadMethod, Pool, Precision};

/// Assumptions of the model of several machines.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Model of a run in parts on several machines")]
pub(in crate::cli) struct ClusterArgs {
    /// Cores of each machine, such as those of this one. Default: the threads of this machine.
    #[arg(long, value_name = "N", requires = "config", value_parser = parse_positive)]
    cores: Option<usize>,
    /// Images/s that a GPU beside the cores runs through the model. Default: measured on this machine's device.
    #[arg(long, value_name = "RATE", requires = "config", value_parser = parse_rate)]
    forward_rate: Option<f64>,
    /// MB/s that the source of the images gives to all machines together.
    #[arg(long, value_name = "RATE", requires = "config", default_value = "5000", value_parser = parse_rate)]
    source_rate: f64,
    /// MB/s of each machine's network.
    #[arg(long, value_name = "RATE", requires = "config", default_value = "1250", value_parser = parse_rate)]
    network_rate: f64,
    /// Seconds from the start of a part to its first image: the program, the model, the catalog.
    #[arg(long, value_name = "SECONDS", requires = "config", default_value = "20", value_parser = parse_rate)]
    start_up: f64,
    /// Price of a machine, in USD per hour.
    #[arg(long, value_name = "USD", requires = "config", default_value = "1", value_parser = parse_rate)]
    machine_price: f64,
    /// Images of the whole corpus, if the pipeline names a sample of it.
    #[arg(long, value_name = "N", requires = "config", value_parser = clap::value_parser!(u64).range(1..))]
    images: Option<u64>,
    /// Shards of the whole corpus, all of one size.
    #[arg(long, value_name = "N", requires = "images", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    shards: Option<u32>,
}

impl From<ClusterArgs> for ClusterSettings {
    fn from(args: ClusterArgs) -> Self {
        Self {
            cores: args.cores,
            forward_per_s: args.forward_rate,
            source_mb_per_s: args.source_rate,
            network_mb_per_s: args.network_rate,
            start_s: args.start_up,
            machine_price: args.machine_price,
            images: args.images,
            shards: args.shards,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum BenchCommand {
    /// Measures the backbone's forward pass on images in memory.
    Forward {
        /// Checkpoint directory in Hugging Face layout.
        #[arg(long, value_name = "DIR")]
        checkpoint: PathBuf,
        /// Number format: `bf16` or `f32`.
        #[arg(long, default_value = "bf16", value_parser = parse_config_value::<Precision>)]
        precision: Precision,
        /// Tokens that make the feature: `default`, `cls`, `mean`, `cls+mean` or `head`.
        #[arg(long, default_value = "default", value_parser = parse_config_value::<Pool>)]
        pool: Pool,
        /// Transformer blocks whose outputs are the feature, separated by commas; -1 is the last.
        #[arg(long, value_name = "LAYERS", default_value = "-1", value_delimiter = ',', allow_hyphen_values = true)]
        layer: Vec<i32>,
        /// Image side in pixels. Default: that of the checkpoint.
        #[arg(long, value_name = "PX", value_parser = clap::value_parser!(u32).range(1..=4096))]
        size_px: Option<u32>,
        /// Images per batch; 0 chooses automatically.
        #[arg(long, default_value_t = 0)]
        batch_size: u32,
        /// Number of random images.
        #[arg(long, default_value_t = 1024, conflicts_with = "pixels", value_parser = parse_positive)]
        rows: usize,
        /// Reads images from this file instead: raw u8, rows × size × size × 3.
        #[arg(long, value_name = "FILE")]
        pixels: Option<PathBuf>,
        /// Writes the features to this file: raw little-endian f32, rows × values, rounded to the number format.
        #[arg(long, value_name = "FILE")]
        features: Option<PathBuf>,
        /// Number of timed passes, after one warm-up pass.
        #[arg(long, default_value_t = 3)]
        passes: u32,
    },
    /// Measures the text encoder on captions of a file.
    Embed {
        /// Checkpoint directory of the encoder in Hugging Face layout.
        #[arg(long, value_name = "DIR")]
        checkpoint: PathBuf,
        /// File with a caption in each line.
        #[arg(long, value_name = "FILE")]
        captions: PathBuf,
        /// Prefix of each caption.
        #[arg(long, default_value = "")]
        prefix: String,
        /// Number format: `bf16` or `f32`. A CPU computes in f32.
        #[arg(long, default_value = "bf16", value_parser = parse_config_value::<Precision>)]
        precision: Precision,
        /// Writes the vectors to this file: raw little-endian f32, captions × values.
        #[arg(long, value_name = "FILE")]
        vectors: Option<PathBuf>,
        /// Number of timed passes, after one warm-up pass.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
        passes: u32,
    },
    /// Measures the training of a classification head on features in memory.
    Head {
        /// Number of classes.
        #[arg(long, default_value_t = 92_366, value_parser = parse_positive)]
        classes: usize,
        /// Values per feature.
        #[arg(long, default_value_t = 768, value_parser = parse_positive)]
        dim: usize,
        /// Rows per step.
        #[arg(long, default_value_t = 1024, value_parser = parse_positive)]
        batch_size: usize,
        /// Number of steps.
        #[arg(long, default_value_t = 100)]
        steps: u64,
        /// Number format of matrix products on a GPU: `bf16` or `f32`.
        #[arg(long, default_value = "bf16", value_parser = parse_config_value::<Precision>)]
        precision: Precision,
        /// Learning rate; constant.
        #[arg(long, default_value_t = 0.01)]
        learning_rate: f64,
        /// Momentum.
        #[arg(long, default_value_t = 0.9)]
        momentum: f64,
        /// Weight decay.
        #[arg(long, default_value_t = 0.0)]
        weight_decay: f64,
        /// Upper bound on the norm of the gradient; 0: none.
        #[arg(long, default_value_t = 0.0)]
        clip_norm: f64,
        /// Label smoothing.
        #[arg(long, default_value_t = 0.0)]
        label_smoothing: f64,
        /// Rows whose gradient is computed at once. Default: all rows of a step.
        #[arg(long, value_parser = parse_positive)]
        micro_batch: Option<usize>,
        /// Random seed of the initial head.
        #[arg(long, default_value_t = 42)]
        seed: u64,
        /// Reads features from this file: raw little-endian f32, rows × values. Default: random values.
        #[arg(long, value_name = "FILE", requires = "labels")]
        features: Option<PathBuf>,
        /// Reads labels from this file: raw little-endian u32.
        #[arg(long, value_name = "FILE", requires = "features")]
        labels: Option<PathBuf>,
        /// Checkpoint to continue from.
        #[arg(long, value_name = "DIR")]
        resume: Option<PathBuf>,
        /// Writes the final checkpoint to this directory.
        #[arg(long, value_name = "DIR")]
        save: Option<PathBuf>,
        /// Steps between two loss values.
        #[arg(long, default_value_t = 10)]
        log_every: u64,
    },
    /// Measures time and memory of a text head in closed form on random features.
    Fit {
        /// Method: `cca` or `ridge`.
        #[arg(long, default_value = "cca", value_parser = parse_config_value::<HeadMethod>)]
        method: HeadMethod,
        /// Number of images.
        #[arg(long, default_value_t = 100_000, value_parser = parse_positive)]
        rows: usize,
        /// Values per feature.
        #[arg(long, default_value_t = 768, value_parser = parse_positive)]
        dim: usize,
        /// Values per vector of a caption.
        #[arg(long, default_value_t = 384, value_parser = parse_positive)]
        text_dim: usize,
    },
    /// Measures the ranking of classes for random features.
    Rank {
        /// Number of classes.
        #[arg(long, default_value_t = 92_366, value_parser = parse_positive)]
        classes: usize,
        /// Values per feature.
        #[arg(long, default_value_t = 768, value_parser = parse_positive)]
        dim: usize,
        /// Number of rows.
        #[arg(long, default_value_t = 44_762, value_parser = parse_positive)]
        rows: usize,
        /// Number of best classes to return per row.
        #[arg(long, default_value_t = 5)]
        top_k: usize,
    },
}

/// Parses a value that the configuration spells the same way.
fn parse_config_value<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

/// Parses a number above 0.
fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().map_err(|error: std::num::ParseFloatError| error.to_string())?;
    if f64::is_finite(rate) && rate > 0.0 { Ok(rate) } else { Err("must be a number above 0".to_owned()) }
}

/// Parses a count of at least 1.
pub(super) fn parse_positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        other => other.map_err(|error: std::num::ParseIntError| error.to_string()),
    }
}
