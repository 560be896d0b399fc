//! `predict`: one or several rankings with the trained head of a run.

use std::time::Instant;

use super::args::Files;
use super::output::{emit, print, print_json};
use super::progress::Screen;
use super::{Failure, Pages, RunOutput, config_failure, load_config, render, run_pipeline};
use crate::config::{AdHocRanking, RunConfig};
use crate::pipeline::Request;

/// Pairs each list of captions with the output in the same place. All rankings share the images, ids and truth of `common`.
pub(super) fn pair_lists(
    captions: Vec<String>,
    outputs: Vec<String>,
    common: &AdHocRanking,
) -> Result<Vec<AdHocRanking>, String> {
    if outputs.len() > captions.len().max(1) || captions.len() > outputs.len() {
        return Err(format!(
            "`--captions` is given {} times and `--output` {} times: give each list an output, in the same order",
            captions.len(),
            outputs.len()
        ));
    }
    if let Some(name) = outputs.iter().enumerate().find_map(|(at, name)| outputs[..at].contains(name).then_some(name)) {
        return Err(format!(
            "`--output {name}` is given twice, and the second ranking would replace the first: name two files"
        ));
    }
    if captions.is_empty() {
        return Ok(vec![AdHocRanking { output: outputs.into_iter().next(), ..common.clone() }]);
    }
    let pairs = captions.into_iter().zip(outputs);
    Ok(pairs.map(|(list, name)| AdHocRanking { captions: Some(list), output: Some(name), ..common.clone() }).collect())
}

/// Makes the rankings one after the other and prints their reports. Every value is checked before the first ranking.
pub(super) fn run(
    files: &Files,
    rankings: Vec<AdHocRanking>,
    request: Request,
    screen: &Screen,
    output: RunOutput,
) -> Result<(), Failure> {
    let config = load_config(files)?;
    let configs = rankings.into_iter().map(|ranking| config.clone().rank(ranking)).collect::<Result<Vec<_>, _>>();
    let configs = configs.map_err(|error| config_failure(files.config(), &error))?;
    let several = configs.len() > 1;
    let mut reports = Vec::new();
    let mut rank = |config: RunConfig| {
        let started = Instant::now();
        let name = config.output().to_owned();
        let report = run_pipeline(config, request, Pages::default(), screen)?;
        if output.json && several {
            reports.push(report);
            return Ok(());
        }
        if several {
            print(&format!("{name}\n"));
        }
        emit(output.json, &report, || render::run(&report, started.elapsed(), output.verbose))
    };
    // The reports of finished rankings are printed even if a later one fails.
    let ended = configs.into_iter().try_for_each(&mut rank);
    if !reports.is_empty() {
        print_json(&reports)?;
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of captions and its output.
    type Pair = (Option<String>, Option<String>);

    fn pair(captions: &[&str], outputs: &[&str]) -> Result<Vec<Pair>, String> {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let pairs = pair_lists(own(captions), own(outputs), &AdHocRanking::default())?;
        Ok(pairs.into_iter().map(|ranking| (ranking.captions, ranking.output)).collect())
    }

    #[test]
    fn each_list_has_the_output_in_its_place() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(pair(&["a", "b"], &["x", "y"]).unwrap(), [(some("a"), some("x")), (some("b"), some("y"))]);
        assert_eq!(pair(&[], &["x"]).unwrap(), [(None, some("x"))]);
        assert_eq!(pair(&[], &[]).unwrap(), [(None, None)]);
        for (captions, outputs) in
            [(&["a", "b"][..], &["x"][..]), (&["a"], &["x", "y"]), (&[], &["x", "y"]), (&["a"], &[])]
        {
            assert!(pair(captions, outputs).unwrap_err().contains("give each list an output"));
        }
    }
}
