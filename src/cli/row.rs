//! `inspect RUN_DIR --row`: one row of a run's inputs.

use std::path::Path;

use serde::Serialize;

use super::failure::Failure;
use super::files::load_machine;
use super::output::emit;
use super::run::start_runtime;
use crate::explore::{InputRow, RowPlace, TRAIN_STREAM, read_row};
use crate::pipeline;
use crate::run_dir::Directory;

/// Facts about a row, for programs.
#[derive(Serialize)]
struct Facts<'a> {
    shard: &'a str,
    row: u64,
    url: Option<&'a str>,
    problem: Option<&'a str>,
    bytes: usize,
    description: &'a str,
    dump: String,
}

/// Parses `SHARD/ROW`, or `STEM:SHARD/ROW` for test images.
fn parse_place(text: &str) -> Option<RowPlace> {
    let (stream, numbers) = text.rsplit_once(':').unwrap_or((TRAIN_STREAM, text));
    let (shard, row) = numbers.split_once('/')?;
    Some(RowPlace { stream: stream.to_owned(), shard: shard.parse().ok()?, row: row.parse().ok()? })
}

/// Prints what a row holds, and writes its bytes to `output`.
pub(super) fn inspect(
    run_dir: &Path,
    row: &str,
    output: Option<&Path>,
    machine: Option<&Path>,
    json: bool,
) -> Result<(), Failure> {
    let place = parse_place(row).ok_or_else(|| {
        Failure::new(
            2,
            format!(
                "`--row {row}`: give SHARD/ROW, two numbers from 0, such as `3/17`; STEM:SHARD/ROW for test images"
            ),
        )
    })?;
    let store = pipeline::open_store(&load_machine(machine)?.store);
    let dir = Directory::read_only(&store, &run_dir.display().to_string()).map_err(pipeline::PipelineError::from)?;
    let found = start_runtime(0)?.block_on(read_row(&dir, &store, &place))?;
    if let Some(output) = output {
        if found.bytes.is_empty() {
            let reason = "the format of the shard does not keep the bytes of this row, or the line is over the limit";
            return Err(Failure::new(3, format!("`{}` is not written: {reason}", output.display())));
        }
        std::fs::write(output, &found.bytes)
            .map_err(|error| Failure::new(4, format!("`{}` cannot be written: {error}", output.display())))?;
    }
    let InputRow { shard, url, problem, bytes, .. } = &found;
    let facts = Facts {
        shard,
        row: place.row,
        url: url.as_deref(),
        problem: problem.as_deref(),
        bytes: bytes.len(),
        description: found.description(),
        dump: found.dump(),
    };
    emit(json, &facts, || render(&facts, output))
}

fn render(facts: &Facts<'_>, output: Option<&Path>) -> String {
    let mut text = format!("{}, row {}: {} bytes, {}\n", facts.shard, facts.row, facts.bytes, facts.description);
    let url = facts.url.map(|url| format!("image    {}\n", url.escape_debug()));
    let problem = facts.problem.map(|problem| format!("problem  {}\n", problem.escape_debug()));
    text.extend(url.into_iter().chain(problem));
    match output {
        Some(output) => text.push_str(&format!("written  {}\n", output.display())),
        None => text.push_str(&facts.dump),
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_parsed() {
        let place = |stream: &str, shard, row| Some(RowPlace { stream: stream.to_owned(), shard, row });
        assert_eq!(parse_place("3/17"), place("train", 3, 17));
        assert_eq!(parse_place("a:b:0/1"), place("a:b", 0, 1));
        for wrong in ["", "3", "3/", "/17", "-1/2", "a/b", "3/17/2"] {
            assert_eq!(parse_place(wrong), None, "{wrong}");
        }
    }
}
