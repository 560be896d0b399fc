//! Generated captions: their scores, and their part of the summary of a run.

use super::Table;
use super::details::in_interval;
use crate::caption::CaptionScores;
use crate::cli::format::{count, number, plural};
use crate::pipeline::report::CaptionReport;

/// Renders the scores of generated captions.
pub(in crate::cli) fn caption_scores(scores: &CaptionScores) -> String {
    let mut table = Table::new(26);
    let of = format!("over {}", plural(scores.ids, "ids"));
    table.row("BLEU-4", format!("{:.5} {of}, {}", scores.bleu4, plural(scores.references, "references")));
    table.row("BLEU-1, -2, -3", format!("{:.5}, {:.5}, {:.5}", scores.bleu1, scores.bleu2, scores.bleu3));
    table.row("METEOR (exact + stem)", format!("{:.5}", scores.meteor_exact_stem));
    table.row("CIDEr", format!("{:.5}", scores.cider));
    for (name, value) in
        [("ids without a caption", scores.without_caption), ("captions without references", scores.without_reference)]
    {
        if value > 0 {
            table.row(name, count(value));
        }
    }
    table.text
}

/// Adds generated captions to the summary of a run.
pub(super) fn append_captions(table: &mut Table, report: &CaptionReport) {
    let (ids, images) = (count(report.ids), plural(report.images, "images"));
    let none = count(report.ids_without_caption);
    table.row("Captions", format!("{ids} for {images}, {} distinct; {none} empty", count(report.distinct)));
    table.row("Search", &report.search);
    if let Some(scores) = &report.scores {
        let of = plural(scores.ids, "ids");
        let (bleu, meteor) = (number(scores.bleu4), number(scores.meteor_exact_stem));
        table.row(
            "Scores",
            format!("BLEU-4 {bleu}, METEOR (exact + stem) {meteor}, CIDEr {} on {of}", number(scores.cider)),
        );
    }
    let Some(ranking) = &report.ranking else { return };
    let head = ranking.head_ndcg5.map_or_else(String::new, |head| format!("; submission of the run {}", number(head)));
    let of = plural(ranking.captions, "captions");
    let text = match &ranking.scores {
        Some(scores) => format!(
            "NDCG@5 {}{} by the generated caption among {of} (chance {}){head}",
            number(scores.ndcg5),
            in_interval(scores.intervals.map(|intervals| intervals.ndcg5)),
            number(scores.ndcg5_chance)
        ),
        None => format!("{of} by the generated caption, without a truth to score against"),
    };
    table.row("Ranking", text);
}
