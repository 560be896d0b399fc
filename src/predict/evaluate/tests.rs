//! Tests of the scores and of the errors of both files.

use super::*;
use crate::predict::metrics::gain;

const HEADER: &str = "id,caption_title_and_reference_description\n";

fn scores(submission: &str, truth: &str) -> Result<Scores, EvaluateError> {
    evaluate(format!("{HEADER}{submission}").as_bytes(), format!("{HEADER}{truth}").as_bytes(), None)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-12
}

#[test]
fn scores_match_numpy() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/");
    let open = |name: &str| std::fs::File::open(format!("{folder}{name}")).unwrap();
    let scores = evaluate(open("ranked.csv"), open("truth.csv"), None).unwrap();
    let expected: serde_json::Value = serde_json::from_reader(open("scores.json")).unwrap();
    let got = serde_json::to_value(scores).unwrap();
    for (name, value) in expected.as_object().unwrap() {
        let (want, have) = (value.as_f64().unwrap(), got[name].as_f64().unwrap());
        assert!(close(want, have), "{name}: {have}, expected {want}");
    }
}

#[test]
fn rows_of_an_id_need_not_be_consecutive() {
    let together = scores("1,x\n1,a\n2,b\n", "1,a\n2,b\n").unwrap();
    let apart = scores("1,x\n2,b\n1,a\n", "1,a\n2,b\n").unwrap();
    assert_eq!(together, apart);
    assert!(close(together.means.ndcg5, f64::midpoint(gain(2), 1.0)));
}

#[test]
fn missing_id_scores_zero() {
    let scores = scores("1,a\n", "1,a\n2,b\n").unwrap();
    assert_eq!((scores.ids, scores.missing_ids), (2, 1));
    assert!(close(scores.means.ndcg5, 0.5));
}

#[test]
fn unknown_id_is_counted_once() {
    let scores = scores("9,a\n9,b\n1,a\n", "1,a\n").unwrap();
    assert_eq!((scores.unknown_ids, scores.rows), (1, 3));
    assert!(close(scores.means.recall1, 1.0));
}

#[test]
fn only_the_first_five_rows_count() {
    let scores = scores("1,u\n1,v\n1,w\n1,x\n1,y\n1,a\n", "1,a\n").unwrap();
    assert_eq!(scores.rows_beyond_five, 1);
    assert!(close(scores.means.ndcg5 + scores.means.mrr + scores.means.recall5, 0.0));
}

#[test]
fn repeated_caption_occupies_a_rank() {
    let scores = scores("1,x\n1,x\n1,a\n1,a\n", "1,a\n").unwrap();
    assert_eq!(scores.repeated_rows, 2);
    assert!(close(scores.means.mrr, 1.0 / 3.0));
}

#[test]
fn best_rank_of_several_relevant_captions_counts() {
    let scores = scores("1,x\n1,b\n1,a\n", "1,a\n1,b\n1,a\n").unwrap();
    assert_eq!(scores.ids, 1);
    assert!(close(scores.means.mrr, 0.5));
}

#[test]
fn captions_are_compared_exactly() {
    let scores = scores("1,a \n1,A\n1,\"a\n\"\n1,a\u{a0}\n", "1,a\n").unwrap();
    assert!(close(scores.means.mrr, 0.0));
}

#[test]
fn byte_order_mark_is_ignored() {
    let truth = "\u{feff}id,other,caption_title_and_reference_description\n1,z,\"a, \"\"b\"\"\nc\"\n";
    let submission = "caption_title_and_reference_description,id\r\n\"a, \"\"b\"\"\nc\",1\r\n";
    let scores = evaluate(submission.as_bytes(), truth.as_bytes(), None).unwrap();
    assert!(close(scores.means.ndcg5, 1.0));
}

#[test]
fn missing_column_error_names_file_and_column() {
    let error = evaluate("id,caption\n".as_bytes(), HEADER.as_bytes(), None);
    assert!(matches!(error, Err(EvaluateError::NoTruth)));
    let error = evaluate("id,caption\n".as_bytes(), format!("{HEADER}1,a\n").as_bytes(), None);
    let error = error.unwrap_err();
    assert!(matches!(error, EvaluateError::Column { role: FileRole::Submission, .. }));
    assert_eq!(
        error.to_string(),
        "the submission has no column `caption_title_and_reference_description`; its header is `id,caption`"
    );
}

#[test]
fn short_row_error_names_file_and_row() {
    let error = scores("1,a\n2\n", "1,a\n").unwrap_err();
    assert!(matches!(error, EvaluateError::Row { row: 2, .. }));
    assert!(error.to_string().contains("row `2` of the submission"));
}

#[test]
fn invalid_utf8_error_names_file_and_row() {
    let mut truth = format!("{HEADER}1,a\n2,").into_bytes();
    truth.extend([0xff, b'\n']);
    let error = evaluate(HEADER.as_bytes(), &truth[..], None).unwrap_err();
    assert!(error.to_string().contains("row `2` of the truth"));
}

#[test]
fn empty_id_is_rejected() {
    let error = scores("1,a\n,b\n", "1,a\n").unwrap_err();
    assert!(error.to_string().contains("row `2` of the submission has an empty column `id`"));
}

#[test]
fn swapped_files_are_refused() {
    let files = |submission: &str, truth: &str| {
        evaluate_files(format!("{HEADER}{submission}").as_bytes(), format!("{HEADER}{truth}").as_bytes(), None)
    };
    let (ranked, right) = ("1,a\n1,b\n2,b\n2,c\n", "1,a\n2,c\n");
    assert!(files(ranked, right).is_ok() && files("1,a\n2,b\n", right).is_ok() && files(ranked, ranked).is_ok());
    assert!(matches!(files(right, ranked), Err(EvaluateError::Swapped { rows: 2 })));
    assert!(matches!(files("9,a\n", right), Err(EvaluateError::NoCommonId { first }) if first == "1"));
    let language = "id,caption_title_and_reference_description,language\n1,a,en\n1,b,de\n";
    let one = format!("{HEADER}1,a\n");
    assert!(evaluate_files(one.as_bytes(), language.as_bytes(), None).is_ok());
    let swapped = evaluate_files(language.as_bytes(), one.as_bytes(), None);
    assert!(matches!(swapped, Err(EvaluateError::TruthAsSubmission)));
}

#[test]
fn empty_file_is_rejected() {
    let error = evaluate("".as_bytes(), "".as_bytes(), None).unwrap_err();
    assert!(matches!(error, EvaluateError::Column { role: FileRole::Truth, .. }));
}

#[test]
fn mean_rank_counts_rows_beyond_the_fifth() {
    let scores = scores("1,u\n1,v\n1,w\n1,x\n1,y\n1,a\n2,b\n3,z\n", "1,a\n2,b\n3,c\n").unwrap();
    assert_eq!((scores.means.mean_rank, scores.ranked_ids), (Some(3.5), 2));
    assert_eq!(scores.by_language, []);
}

#[test]
fn languages_are_scored_by_their_own_captions() {
    let truth = "id,caption_title_and_reference_description,language\n1,a,en\n1,b,de\n2,c,en\n2,d,\n";
    let submission = format!("{HEADER}1,b\n1,a\n2,x\n2,d\n");
    let scores = evaluate(submission.as_bytes(), truth.as_bytes(), None).unwrap();
    assert!(close(scores.means.recall1, 0.5) && close(scores.means.ndcg5, f64::midpoint(1.0, gain(2))));
    let found: Vec<(&str, u64, f64)> =
        scores.by_language.iter().map(|own| (own.language.as_str(), own.ids, own.means.ndcg5)).collect();
    assert_eq!(found, [("de", 1, 1.0), ("en", 2, gain(2) / 2.0)]);
}

#[test]
fn ids_of_one_image_are_resampled_together() {
    let rows = |wrong: &str| {
        (0..40).fold(String::new(), |text, id| text + &format!("{id},{}\n", if id % 2 == 0 { "a" } else { wrong }))
    };
    let (submission, truth) = (format!("{HEADER}{}", rows("b")), format!("{HEADER}{}", rows("a")));
    let width = |images: Option<&ImageOfId>| {
        let scores = evaluate(submission.as_bytes(), truth.as_bytes(), images).unwrap();
        assert!(close(scores.means.recall1, 0.5));
        let recall1 = scores.means.intervals.unwrap().recall1;
        recall1.high - recall1.low
    };
    // Two ids an image, one right and one wrong: every image scores a half.
    let pairs: ImageOfId = (0..40_u64).map(|id| (id.to_string().into(), id / 2)).collect();
    assert!(width(None) > 0.2 && width(Some(&pairs)) < 1e-9);
}
