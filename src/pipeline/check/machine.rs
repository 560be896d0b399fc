//! Checks that the machine or container fits a run: memory, cores, writable disks and credentials.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytesize::ByteSize;

use super::Check;
use crate::config::{ConfigError, Problem, RunConfig};
use crate::objects::{Store, describe_s3_credentials};
use crate::pipeline::context::{scratch_path, workers};
use crate::pipeline::resolve::Backbone;
use crate::run_dir::free_bytes;

/// Bytes of a weight on the CPU, which computes in f32.
const CPU_WEIGHT_BYTES: u64 = 4;

/// Adds memory, cores, disks and credentials, and the problems with them.
pub(super) fn check_machine(config: &RunConfig, check: &mut Check) {
    check.machine.insert("cores".to_owned(), decoding_threads(workers(config)));
    if let Some(available) = config.limits().available {
        let auto = if config.limits().memory_is_auto { ", chosen by `auto`" } else { "" };
        let text = format!("{available}; up to {} of it in flight{auto}", config.limits().memory);
        check.machine.insert("memory".to_owned(), text);
    }
    check_disks(config, check);
    check_credentials(config, check);
}

/// Says how many threads decode.
fn decoding_threads(count: usize) -> String {
    if count == 1 { "1 decoding thread".to_owned() } else { format!("{count} decoding threads") }
}

/// Refuses a model whose weights, together with `limits.memory`, exceed the memory. Only the CPU keeps weights in it.
pub(super) fn check_weights(config: &RunConfig, backbone: &Backbone, check: &mut Check) {
    let limits = config.limits();
    let Some(available) = limits.available else { return };
    let weights = backbone.checkpoint.parameters() * CPU_WEIGHT_BYTES;
    if limits.memory.0.saturating_add(weights) > available.bytes {
        let what = format!(
            "`{}` and {} of weights are too much, because {available}: lower it, or provide more memory",
            limits.memory,
            ByteSize(weights)
        );
        check.add_problem(&ConfigError(vec![Problem::new("limits.memory", what)]).into());
    }
}

fn check_disks(config: &RunConfig, check: &mut Check) {
    let run_dir = config.run_dir();
    let local = (!Store::is_remote(run_dir)).then(|| PathBuf::from(run_dir.strip_prefix("file://").unwrap_or(run_dir)));
    let scratch =
        config.model().is_some_and(|model| model.published_dim.is_none()).then(|| ("scratch", scratch_path(config)));
    let run = local.map(|folder| ("run directory", folder));
    for (name, folder) in scratch.into_iter().chain(run) {
        if let Some(free) = free_bytes(&folder) {
            let text = format!("{} free for `{}`", ByteSize(free), folder.display());
            check.machine.insert(format!("disk for the {name}"), text);
        }
    }
}

/// Says where credentials come from. Listing the inputs has shown whether they suffice for reading.
fn check_credentials(config: &RunConfig, check: &mut Check) {
    let mut schemes: BTreeMap<&str, &str> = BTreeMap::new();
    let patterns = [
        config.images().map(|images| images.shards.as_slice()),
        config.catalog().map(|catalog| catalog.pairs.shards.as_slice()),
        config.predict().map(|predict| predict.images.as_slice()),
    ];
    let urls = patterns.into_iter().flatten().flatten().map(String::as_str).chain([config.run_dir()]);
    for url in urls {
        if let Some((scheme, _)) = url.split_once("://") {
            schemes.insert(scheme, url);
        }
    }
    if schemes.contains_key("s3") {
        check.machine.insert("credentials for s3".to_owned(), describe_s3_credentials());
    }
    if Store::is_remote(config.run_dir()) {
        let text = "not checked: this command writes nothing";
        check.machine.insert("write access to run.dir".to_owned(), text.to_owned());
    }
}
