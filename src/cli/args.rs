//! Command-line arguments.

mod bench;
mod names;

use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, CommandFactory as _, Parser, Subcommand};

pub(super) use bench::{BenchCommand, ClusterArgs};
pub(super) use names::{SampleFormatName, StageName};

/// Ranks captions for images: streams a corpus through a frozen vision transformer, trains a caption head and writes a
/// ranked submission.
///
/// Every run can be resumed: repeat the same command after any interruption.
#[derive(Debug, Parser)]
#[command(name = "wikicap-pipeline", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "\
Try it on a small synthetic corpus:
  wikicap-pipeline run pipelines/demo.toml

Exit codes: 0 done; 2 command line or configuration; 3 input; 4 storage; 5 device or model;
130 stopped by Ctrl-C; 143 stopped by SIGTERM.
Environment: NO_COLOR; RUST_LOG, for example RUST_LOG=wikicap_pipeline=debug; WIKICAP_CACHE, a
directory for compiled GPU kernels (default: in the scratch directory).")]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
    /// Prints results as JSON on standard output.
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Prints more: all tables at the end of a run, and debug messages; -vv adds those of libraries.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
    /// Prints results, warnings and errors, but no progress.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(super) quiet: bool,
}

/// The two configuration files.
#[derive(Debug, ClapArgs)]
pub(super) struct Files {
    /// Pipeline file: the inputs, the model and the stages to run.
    #[arg(value_name = "FILE", required_unless_present = "config", conflicts_with = "config")]
    file: Option<PathBuf>,
    /// The same as FILE.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Machine file: limits, scratch directory, device and storage. Default: see `config reference`.
    #[arg(short, long, value_name = "FILE")]
    pub(super) machine: Option<PathBuf>,
}

impl Files {
    /// Returns the pipeline file, given as `FILE` or `--config FILE`; clap requires exactly one of them.
    pub(super) fn config(&self) -> &Path {
        self.file.as_deref().or(self.config.as_deref()).unwrap_or(Path::new(""))
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Runs or resumes every stage that the pipeline file names.
    ///
    /// Prints a summary at the end. `report.json` in the run directory has all counts, scores and timings.
    Run {
        #[command(flatten)]
        files: Files,
        /// Deletes the results of this stage and of all later stages, and computes them again. `text` and `train` keep the
        /// features of the test images, which depend on neither.
        #[arg(long, value_name = "STAGE", conflicts_with = "fresh")]
        from: Option<StageName>,
        /// Deletes all results of the run and starts over.
        #[arg(long)]
        fresh: bool,
        /// Works on part I of N: the shards whose number modulo N is I. Other processes, on any machines, work on the other
        /// parts of the same run directory. `auto` takes I and N from the job array of AWS Batch, Slurm or `SkyPilot`. The
        /// process that completes the last part trains and predicts.
        #[arg(long, value_name = "I/N", conflicts_with_all = ["from", "fresh"])]
        part: Option<String>,
        /// Ends after the part, even if it was the last one; `run` without `--part` then trains and predicts.
        #[arg(long, requires = "part")]
        part_only: bool,
        /// Runs one process for each card of this machine, with equal shares of the limits, then trains and predicts on the
        /// first card. CARDS is `all`, or a list such as `0,1`.
        #[arg(long, value_name = "CARDS", conflicts_with_all = ["from", "fresh", "part", "metrics", "serve"])]
        cards: Option<String>,
        /// Takes one of this many equal shares of the machine's limits.
        #[arg(long, hide = true, value_parser = clap::value_parser!(u32).range(1..))]
        share: Option<u32>,
        /// Ends, after saving, when the process that started this one ends; for an engine that may lose track of its children.
        #[arg(long)]
        child: bool,
        /// Serves Prometheus metrics at `/metrics` and a health check at `/healthz` during the run. ADDR is `PORT`, which listens on
        /// localhost only, or `HOST:PORT`.
        #[arg(long, value_name = "ADDR")]
        metrics: Option<String>,
        /// Serves the page of `serve` during the run. ADDR is `PORT`, which listens on localhost only, or `HOST:PORT`.
        #[arg(long, value_name = "ADDR")]
        serve: Option<String>,
    },
    /// Serves a page about runs: progress, curves, pictures, rows that could not be used. Never writes to a run.
    Serve {
        /// Run directories: paths or `s3://` URLs. The runs may be under way.
        #[arg(value_name = "RUN_DIR", required = true)]
        dirs: Vec<String>,
        /// Address to listen on: `PORT`, which listens on localhost only, or `HOST:PORT`.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
        address: String,
        /// Machine file, for its `[store]` section.
        #[arg(short, long, value_name = "FILE")]
        machine: Option<PathBuf>,
    },
    /// Compares runs: scores, and the settings in which they differ.
    Runs {
        /// Run directories, or directories that hold some: paths or `s3://` URLs.
        #[arg(value_name = "DIR", required = true)]
        dirs: Vec<String>,
        /// Machine file, for its `[store]` section.
        #[arg(short, long, value_name = "FILE")]
        machine: Option<PathBuf>,
    },
    /// Shows the progress of a run: stages, rates, time left, bottleneck. Works during the run and afterwards.
    Status {
        /// Run directory: a path or an `s3://` URL.
        #[arg(value_name = "DIR", required_unless_present = "run_dir", conflicts_with = "run_dir")]
        dir: Option<String>,
        /// The same as DIR.
        #[arg(long, value_name = "DIR")]
        run_dir: Option<String>,
        /// Machine file, for its `[store]` section.
        #[arg(short, long, value_name = "FILE")]
        machine: Option<PathBuf>,
        /// Lists all shards, not only those being read.
        #[arg(long)]
        shards: bool,
        /// Ends with exit code 1 unless the run is alive or complete; for health checks.
        #[arg(long)]
        check: bool,
    },
    /// Checks configuration and inputs without running anything, and lists every problem.
    Check {
        #[command(flatten)]
        files: Files,
    },
    /// Looks at your images and captions, and writes a pipeline file for them.
    ///
    /// Reads folders of pictures, Parquet, tar archives, JSON lines and TSV, on disk, in object stores, on web servers and in
    /// data sets of the Hugging Face hub. Asks nothing, and overwrites no file.
    Init {
        /// Folder, file, glob or URL; `hf://datasets/ORG/NAME` for a data set of the hub.
        #[arg(value_name = "PATH", default_value = ".")]
        paths: Vec<PathBuf>,
        /// Pipeline file to write; `-` prints it.
        #[arg(short, long, value_name = "FILE", default_value = "pipeline.toml")]
        output: PathBuf,
        /// Directory of the run. Default: `runs/` and the name of the pipeline file.
        #[arg(long, value_name = "DIR")]
        run_dir: Option<String>,
        /// Backbone: a directory or `hf:ORG/NAME`.
        #[arg(long, value_name = "NAME")]
        model: Option<String>,
        /// Text encoder: a directory or `hf:ORG/NAME`.
        #[arg(long, value_name = "NAME")]
        encoder: Option<String>,
        /// Machine file, for its `[store]` section.
        #[arg(short, long, value_name = "FILE")]
        machine: Option<PathBuf>,
    },
    /// Renders a small synthetic corpus in the published file layout, with a tiny ViT checkpoint.
    Sample {
        /// Directory to write to; it must be empty or absent.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Number of usable training images.
        #[arg(long, default_value_t = 2400)]
        train_images: u32,
        /// Number of usable test images.
        #[arg(long, default_value_t = 300)]
        test_images: u32,
        /// Random seed; equal seeds give equal files.
        #[arg(long, default_value_t = 42)]
        seed: u64,
        /// Format of images and captions. The pictures and captions are the same in each.
        #[arg(long, value_enum, default_value = "tsv")]
        format: SampleFormatName,
    },
    /// Runs prediction only, with the trained head of an earlier run.
    Predict {
        #[command(flatten)]
        files: Files,
        /// Captions to rank instead of the configured list: a CSV file with a header such as `caption` and one column. Needs a text
        /// head, and `--output`. Several lists are ranked one after the other, each into the `--output` in the same place.
        #[arg(long, value_name = "FILE", requires = "output")]
        captions: Vec<String>,
        /// Name of the ranked file in the run directory, instead of `predict.output`. Scores and times go to `NAME.report.json`
        /// beside it; the submission and the report of the run stay as they are.
        #[arg(long, value_name = "NAME.csv")]
        output: Vec<String>,
        /// Images to rank captions for, instead of `predict.images`: files, globs or folders; may be given several times. Needs
        /// `--output`. Without `--ids` each image is an id, and without `--truth` there is no score.
        #[arg(long, value_name = "GLOB", requires = "output")]
        images: Vec<String>,
        /// File of ids instead of `predict.ids`, with the columns `id` and `image_url`. Needs `--output`.
        #[arg(long, value_name = "FILE", requires = "output")]
        ids: Option<String>,
        /// CSV file with the right caption of each id, instead of `predict.truth`.
        #[arg(long, value_name = "FILE")]
        truth: Option<String>,
        /// Waits while another process works on the run directory, instead of ending with an error.
        #[arg(long)]
        wait: bool,
    },
    /// Writes a caption of each image with a captioning model, as `[caption]` of the pipeline file says: a baseline beside the
    /// ranking heads.
    ///
    /// The same command resumes after an interruption. With changed settings the captions are made again.
    Caption {
        #[command(flatten)]
        files: Files,
        /// Images to caption instead of `caption.images`: files, globs or folders; may be given several times. Needs `--output`.
        #[arg(long, value_name = "GLOB", requires = "output")]
        images: Vec<String>,
        /// File of ids instead of `caption.ids`, with the columns `id` and `image_url`.
        #[arg(long, value_name = "FILE")]
        ids: Option<String>,
        /// Name of the file of captions in the run directory, instead of `caption.output`: `NAME.csv` or `NAME.jsonl`. Counts and
        /// scores go to `NAME.report.json` beside it.
        #[arg(long, value_name = "NAME")]
        output: Option<String>,
        /// CSV file of right captions instead of `caption.references`: adds BLEU, METEOR (exact + stem) and `CIDEr`.
        #[arg(long, value_name = "FILE")]
        references: Option<String>,
        /// Waits while another process works on the run directory, instead of ending with an error.
        #[arg(long)]
        wait: bool,
    },
    /// Scores a submission against the right captions: NDCG@5, recall@1, recall@5, mean reciprocal rank, mean rank.
    ///
    /// Each score comes with its interval of 95 % confidence, by the bootstrap over images.
    ///
    /// With `--captions`, scores generated captions against references instead: BLEU-1 to BLEU-4, METEOR (exact + stem) and `CIDEr`.
    Evaluate {
        /// CSV file with the columns `id` and `caption_title_and_reference_description`, best caption first.
        #[arg(long, value_name = "FILE", required_unless_present = "captions")]
        submission: Option<PathBuf>,
        /// CSV file of generated captions, with the columns `id` and `caption`, as `caption` writes it.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["submission", "ids"])]
        captions: Option<PathBuf>,
        /// CSV file with the same columns and the right caption of each id. With a column `language`, an id may have several,
        /// and each language is scored by itself too. For `--captions`: references, several rows an id, in the column `caption`,
        /// `reference` or `caption_title_and_reference_description`.
        #[arg(long, value_name = "FILE")]
        truth: PathBuf,
        /// `test.tsv`, with the columns `id` and `image_url`: adds the highest score that one ranking per image can reach, and
        /// lets the intervals of confidence treat the ids of one image as one. Without it each id counts as an image.
        #[arg(long, value_name = "FILE")]
        ids: Option<PathBuf>,
    },
    /// Describes a chunk, a quarantine file, a checkpoint, a model or a run directory.
    Inspect {
        /// File or directory, or `hf:ORG/NAME` for a model in the Hugging Face cache.
        path: PathBuf,
        /// Reads one row of the inputs of a run directory instead: SHARD/ROW, both from 0 as in the quarantine files, or
        /// STEM:SHARD/ROW for the test images of the submission STEM.csv.
        #[arg(long, value_name = "ROW")]
        row: Option<String>,
        /// Writes the bytes of the row to a file, instead of showing the first of them.
        #[arg(long, value_name = "FILE", requires = "row")]
        output: Option<PathBuf>,
        /// Machine file, for its `[store]` section.
        #[arg(short, long, value_name = "FILE", requires = "row")]
        machine: Option<PathBuf>,
    },
    /// Writes the backbone and the trained head as a model directory for Hugging Face transformers.
    Export {
        #[command(flatten)]
        files: Files,
        /// Directory to write to: absent, empty, or an earlier export of the same run, which is replaced.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Lists the devices that can run the model, and says what CUDA lacks.
    Devices {
        /// Machine file, for its `[device]` section.
        #[arg(short, long, value_name = "FILE")]
        machine: Option<PathBuf>,
    },
    /// Measures how fast this machine reads and decodes a pipeline's images, or one part of the model.
    ///
    /// `bench --config FILE` measures each stage on the first images of the pipeline's own input, estimates the rates of larger
    /// machines, and models a run in parts on 1 to 64 machines. The subcommands measure the forward pass, the text encoder,
    /// the training of a head, and ranking.
    #[command(subcommand_negates_reqs = true)]
    Bench {
        /// Pipeline file whose image stages are measured.
        #[arg(short, long, value_name = "FILE", required = true)]
        config: Option<PathBuf>,
        /// Machine file, for `[limits]`, `[device]`, `[scratch]` and `[store]`.
        #[arg(short, long, value_name = "FILE", global = true)]
        machine: Option<PathBuf>,
        #[command(flatten)]
        cluster: ClusterArgs,
        #[command(subcommand)]
        command: Option<BenchCommand>,
    },
    /// Explains the configuration files.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Prints a completion script for a shell.
    Completions {
        /// Shell that the script is for.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Prints every key with its meaning, unit and default, as TOML.
    Reference,
}

/// Generates a completion script.
///
/// `clap_complete` 4.6 writes a hyphen in the program's name in two ways into the script for bash, so that nothing after a
/// subcommand would be completed. This function makes them equal.
pub(super) fn completion_script(shell: clap_complete::Shell) -> String {
    let mut command = Args::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, &name, &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    if shell == clap_complete::Shell::Bash {
        return script.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__"));
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn pipeline_file_is_an_argument_or_a_flag() {
        for line in
            [&["x", "check", "a.toml"][..], &["x", "check", "--config", "a.toml"], &["x", "check", "-c", "a.toml"]]
        {
            let Command::Check { files } = Args::try_parse_from(line).unwrap().command else { panic!("{line:?}") };
            assert_eq!(files.config(), Path::new("a.toml"));
        }
        assert!(Args::try_parse_from(["x", "check"]).is_err());
        assert!(Args::try_parse_from(["x", "check", "a.toml", "--config", "a.toml"]).is_err());
    }

    #[test]
    fn bash_completion_has_options_for_every_subcommand() {
        let script = completion_script(clap_complete::Shell::Bash);
        let commands: Vec<&str> =
            script.lines().filter_map(|line| line.trim().strip_prefix("cmd=\"")?.strip_suffix('"')).collect();
        assert!(commands.len() > 10, "{script}");
        for command in commands.iter().filter(|command| !command.is_empty()) {
            assert!(script.contains(&format!("\n        {command})\n")), "no options for {command}");
        }
    }
}
