//! Arguments.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

use crate::config::Stage;
use crate::types::{Pool, Precision};

/// Streams the Wikipedia image/caption corpus through a frozen ViT, trains a caption head and writes a ranked submission.
///
/// Everything is resumable: run the same command again after any interruption and it goes on where it stopped.
#[derive(Debug, Parser)]
#[command(name = "wikicap-pipeline", version, max_term_width = 110, arg_required_else_help = true)]
#[command(after_help = "\
Try it on a small corpus that the tool draws itself:
  wikicap-pipeline run --config pipelines/demo.toml

Exit codes: 0 done; 2 command line or configuration; 3 input; 4 store or disk; 5 device or model;
130 / 143 stopped by SIGINT / SIGTERM after saving.
Logs: -v, -vv, or RUST_LOG=wikicap_pipeline=debug.")]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
    /// Print results as JSON on standard output.
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Log more; twice for debugging.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
}

/// The two configuration files.
#[derive(Debug, ClapArgs)]
pub(super) struct Files {
    /// What to run: a pipeline file.
    #[arg(short, long, value_name = "FILE")]
    pub(super) config: PathBuf,
    /// Where to run it: a machine file. Without one: the defaults that `config reference` shows.
    #[arg(short, long, value_name = "FILE")]
    pub(super) machine: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Runs, or resumes, every stage that the configuration names.
    ///
    /// Ends with a table of counts, scores, rates and outputs; the same is in `report.json` in the run directory.
    Run {
        #[command(flatten)]
        files: Files,
        /// Throws away what this stage and those after it made, and recomputes it.
        #[arg(long, value_name = "STAGE", conflicts_with = "fresh")]
        from: Option<StageName>,
        /// Throws away everything that the run made, and starts over.
        #[arg(long)]
        fresh: bool,
        /// Serves the run's counters to Prometheus under `/metrics`, and `/healthz`, until the run ends: `PORT` on loopback
        /// alone, or `HOST:PORT`.
        #[arg(long, value_name = "ADDR")]
        metrics: Option<String>,
    },
    /// Says how far a run is, while it runs or after: stages, shards, rates, time left, bottleneck.
    Status {
        /// The run's directory: a path, or an `s3://` URL.
        #[arg(long, value_name = "DIR")]
        run_dir: String,
        /// A machine file, for its `[store]`.
        #[arg(short, long, value_name = "FILE")]
        machine: Option<PathBuf>,
        /// Lists every shard, not only those in hand.
        #[arg(long)]
        shards: bool,
    },
    /// Says what would run, on what, and what it needs; lists every problem and changes nothing.
    Check {
        #[command(flatten)]
        files: Files,
    },
    /// Draws a small corpus in the published layout and a tiny ViT checkpoint, for trying things out.
    Sample {
        /// Directory to write; it must not hold anything else.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Usable training images.
        #[arg(long, default_value_t = 2400)]
        train_images: u32,
        /// Usable test images.
        #[arg(long, default_value_t = 300)]
        test_images: u32,
        /// Seed: the same seed draws the same bytes.
        #[arg(long, default_value_t = 42)]
        seed: u64,
    },
    /// Runs prediction alone, from the run's newest checkpoint.
    Predict {
        #[command(flatten)]
        files: Files,
        /// With a text head: CSV file with a header and one column of captions to rank, which the run need not have seen.
        #[arg(long, value_name = "FILE")]
        captions: Option<String>,
        /// File in the run's directory for the ranked captions, instead of `predict.output`; features are made once for both.
        #[arg(long, value_name = "NAME.csv")]
        output: Option<String>,
    },
    /// Scores a submission against a truth file with the same columns: NDCG@5, recall@1 and @5, MRR.
    Evaluate {
        /// CSV with the columns `id` and `caption_title_and_reference_description`, best first.
        #[arg(long, value_name = "FILE")]
        submission: PathBuf,
        /// CSV with the same columns, the right caption of each id.
        #[arg(long, value_name = "FILE")]
        truth: PathBuf,
        /// `test.tsv` with the columns id and image URL: shows the ceiling that one ranking an image can reach.
        #[arg(long, value_name = "FILE")]
        ids: Option<PathBuf>,
    },
    /// Says what a chunk, a quarantine file, a checkpoint, a model or a run directory holds.
    Inspect {
        /// File or directory, or `hf:ORG/NAME` for a model in the hub's cache.
        path: PathBuf,
    },
    /// Writes backbone and trained head as a directory that Hugging Face transformers opens.
    Export {
        #[command(flatten)]
        files: Files,
        /// Directory to write.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Says what a model can run on here: the CPU, and CUDA with its cards, or what CUDA lacks.
    Devices {
        /// A machine file, for its `[device]`.
        #[arg(short, long, value_name = "FILE")]
        machine: Option<PathBuf>,
    },
    /// Measures a pipeline's own ingestion on the head of its own input, stage by stage, and says what larger machines would do:
    /// `bench --config FILE`. Or the device's parts by themselves: forward pass, training of the head, ranking.
    #[command(subcommand_negates_reqs = true)]
    Bench {
        /// A pipeline file whose ingestion is measured.
        #[arg(short, long, value_name = "FILE", required = true)]
        config: Option<PathBuf>,
        /// A machine file, for `[limits]`, `[device]`, `[scratch]` and `[store]`.
        #[arg(short, long, value_name = "FILE", global = true)]
        machine: Option<PathBuf>,
        #[command(subcommand)]
        command: Option<BenchCommand>,
    },
    /// About the configuration files.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Writes a completion script for a shell.
    Completions {
        /// Shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// A backbone over images that lie in memory.
    Forward {
        /// Directory of the checkpoint, in Hugging Face layout.
        #[arg(long, value_name = "DIR")]
        checkpoint: PathBuf,
        /// `bf16` or `f32`.
        #[arg(long, default_value = "bf16", value_parser = word::<Precision>)]
        precision: Precision,
        /// `default`, `cls` or `cls+mean`.
        #[arg(long, default_value = "default", value_parser = word::<Pool>)]
        pool: Pool,
        /// Block whose output is the feature.
        #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
        layer: i32,
        /// Side of the images in pixels; the checkpoint's, if absent.
        #[arg(long, value_name = "PX", value_parser = clap::value_parser!(u32).range(1..=4096))]
        size_px: Option<u32>,
        /// Images in a batch. 0: chosen.
        #[arg(long, default_value_t = 0)]
        batch_size: u32,
        /// Images, of noise.
        #[arg(long, default_value_t = 1024, conflicts_with = "pixels", value_parser = positive)]
        rows: usize,
        /// Images instead: raw u8, rows × size × size × 3.
        #[arg(long, value_name = "FILE")]
        pixels: Option<PathBuf>,
        /// Where the features go: raw little-endian f32, rows × values, rounded as they are stored.
        #[arg(long, value_name = "FILE")]
        features: Option<PathBuf>,
        /// Passes that are timed, after one that is not.
        #[arg(long, default_value_t = 3)]
        passes: u32,
    },
    /// A head over rows that lie in memory.
    Head {
        /// Classes.
        #[arg(long, default_value_t = 92_366, value_parser = positive)]
        classes: usize,
        /// Values of a feature.
        #[arg(long, default_value_t = 768, value_parser = positive)]
        dim: usize,
        /// Rows of a step.
        #[arg(long, default_value_t = 1024, value_parser = positive)]
        batch_size: usize,
        /// Steps.
        #[arg(long, default_value_t = 100)]
        steps: u64,
        /// Type of the matrix products on a card: `bf16` or `f32`.
        #[arg(long, default_value = "bf16", value_parser = word::<Precision>)]
        precision: Precision,
        /// Learning rate, constant.
        #[arg(long, default_value_t = 0.01)]
        learning_rate: f64,
        /// Momentum.
        #[arg(long, default_value_t = 0.9)]
        momentum: f64,
        /// Weight decay.
        #[arg(long, default_value_t = 0.0)]
        weight_decay: f64,
        /// Seed of a fresh head.
        #[arg(long, default_value_t = 42)]
        seed: u64,
        /// Features: raw little-endian f32, rows × values; noise, if absent.
        #[arg(long, value_name = "FILE", requires = "labels")]
        features: Option<PathBuf>,
        /// Labels: raw little-endian u32.
        #[arg(long, value_name = "FILE", requires = "features")]
        labels: Option<PathBuf>,
        /// Checkpoint to go on from.
        #[arg(long, value_name = "DIR")]
        resume: Option<PathBuf>,
        /// Where the checkpoint after the last step goes.
        #[arg(long, value_name = "DIR")]
        save: Option<PathBuf>,
        /// Steps between two losses.
        #[arg(long, default_value_t = 10)]
        log_every: u64,
    },
    /// Ranking of classes for rows of noise.
    Rank {
        /// Classes.
        #[arg(long, default_value_t = 92_366, value_parser = positive)]
        classes: usize,
        /// Values of a feature.
        #[arg(long, default_value_t = 768, value_parser = positive)]
        dim: usize,
        /// Rows.
        #[arg(long, default_value_t = 44_762, value_parser = positive)]
        rows: usize,
        /// Classes that are ranked.
        #[arg(long, default_value_t = 5)]
        top_k: usize,
    },
}

/// A word of the configuration.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

/// A count of at least one.
fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        other => other.map_err(|error: std::num::ParseIntError| error.to_string()),
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Every key with its meaning, unit and default, as TOML.
    Reference,
}

/// A stage on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum StageName {
    /// Classes and join index.
    Catalog,
    /// Chunks of the training images.
    Stream,
    /// Vectors of the captions, for a text head.
    Text,
    /// Checkpoints of the head.
    Train,
    /// Test features and submission.
    Predict,
}

impl From<StageName> for Stage {
    fn from(name: StageName) -> Self {
        match name {
            StageName::Catalog => Self::Catalog,
            StageName::Stream => Self::Stream,
            StageName::Text => Self::Text,
            StageName::Train => Self::Train,
            StageName::Predict => Self::Predict,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
