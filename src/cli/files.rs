//! Reading of the configuration files that the command line names.

use std::path::Path;

use super::Failure;
use super::args::Files;
use crate::config::{self, MachineConfig, MachineFile, PipelineFile, RunConfig};
use crate::runtime::{Resources, usable_cores};

pub(super) fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::new(2, format!("`{}` cannot be read: {error}", path.display())))
}

/// Lists the problems of a configuration file, one per line.
pub(super) fn config_failure(path: &Path, error: &config::ConfigError) -> Failure {
    let lines: Vec<String> = error.0.iter().map(|problem| format!("`{}`: {problem}", path.display())).collect();
    Failure::new(2, lines.join("\n"))
}

/// Reads a machine file without checking it; without one, returns the defaults. Adds the memory that this process may use.
pub(super) fn read_machine_file(path: Option<&Path>) -> Result<MachineFile, Failure> {
    let file = path.map_or_else(
        || Ok(MachineFile::default()),
        |path| MachineFile::parse(&read_text(path)?).map_err(|error| config_failure(path, &error)),
    )?;
    Ok(file.with_available_memory(Resources::read().memory))
}

/// Reads and checks a machine file, for commands without a pipeline file.
pub(super) fn load_machine(path: Option<&Path>) -> Result<MachineConfig, Failure> {
    MachineConfig::check(&read_machine_file(path)?)
        .map_err(|error| config_failure(path.unwrap_or(Path::new("")), &error))
}

/// Reads and checks both configuration files.
pub(super) fn load_config(files: &Files) -> Result<RunConfig, Failure> {
    load_config_files(files.config(), files.machine.as_deref())
}

pub(super) fn load_config_files(config: &Path, machine: Option<&Path>) -> Result<RunConfig, Failure> {
    check_config_files(config, machine, |machine| machine)
}

/// Reads both configuration files and takes one of `count` equal shares of the limits.
pub(super) fn load_share(files: &Files, count: u32) -> Result<RunConfig, Failure> {
    let cores = usable_cores() as u32;
    check_config_files(files.config(), files.machine.as_deref(), |machine| {
        if count > 1 { machine.share(count, cores) } else { machine }
    })
}

pub(super) fn check_config_files(
    config: &Path,
    machine: Option<&Path>,
    edit: impl FnOnce(MachineFile) -> MachineFile,
) -> Result<RunConfig, Failure> {
    let pipeline = PipelineFile::parse(&read_text(config)?).map_err(|error| config_failure(config, &error))?;
    let machine_file = edit(read_machine_file(machine)?);
    let both = machine
        .map_or_else(|| config.to_owned(), |machine| format!("{} and {}", config.display(), machine.display()).into());
    RunConfig::check(pipeline, &machine_file).map_err(|error| config_failure(&both, &error))
}
