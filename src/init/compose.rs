//! Writes the text of a pipeline file.

use super::InitRequest;
use super::choice::{Choice, Head, Pairs};

/// Backbone without a request.
const MODEL: &str = "hf:facebook/dinov2-small";
/// Text encoder without a request, and the prefix that it was trained with.
const ENCODER: (&str, &str) = ("hf:intfloat/multilingual-e5-small", "query: ");
/// Images up to which a set counts as small.
const SMALL: u64 = 100_000;

/// Text of a pipeline file under construction.
struct File {
    text: String,
}

/// Quotes a text for TOML.
fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl File {
    fn section(&mut self, name: &str, comment: &str) {
        self.text.push('\n');
        self.text.push_str(&with_comment(&format!("[{name}]"), comment));
    }

    fn key(&mut self, key: &str, value: impl std::fmt::Display, comment: &str) {
        self.text.push_str(&with_comment(&format!("{key} = {value}"), comment));
    }

    fn string(&mut self, key: &str, value: &str, comment: &str) {
        self.key(key, quote(value), comment);
    }

    fn list(&mut self, key: &str, values: &[String], comment: &str) {
        match values {
            [] | [_] => {
                let quoted: String = values.iter().map(|value| quote(value)).collect();
                self.key(key, format!("[{quoted}]"), comment);
            }
            _ => {
                self.text.push_str(&with_comment(&format!("{key} = ["), comment));
                for value in values {
                    self.text.push_str(&format!("    {},\n", quote(value)));
                }
                self.text.push_str("]\n");
            }
        }
    }

    /// Appends a comment of its own after a blank line.
    fn remark(&mut self, text: &str) {
        self.text.push('\n');
        self.comment(text);
    }

    fn comment(&mut self, text: &str) {
        for line in text.lines() {
            self.text.push_str(format!("# {line}").trim_end());
            self.text.push('\n');
        }
    }
}

fn with_comment(line: &str, comment: &str) -> String {
    if comment.is_empty() { format!("{line}\n") } else { format!("{line:<37} # {comment}\n") }
}

/// Returns a text without line ends, for a comment.
fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// Composes the pipeline file of a choice.
pub(super) fn compose(request: &InitRequest, choice: &Choice) -> String {
    let mut file = File { text: String::new() };
    file.comment(
        "Written by `wikicap-pipeline init`. `wikicap-pipeline config reference` explains every key.\n\nFound:",
    );
    for (name, value) in &choice.found {
        file.comment(&one_line(&format!("  {name}: {value}")));
    }
    file.comment(&format!("Head: {}.", one_line(&choice.reason)));
    file.section("run", "");
    file.string("dir", &request.run_dir, "everything that the run writes");
    if let Some(pairs) = &choice.pairs {
        captions(&mut file, choice, pairs);
    }
    file.section("images", "");
    file.list("shards", &choice.images.shards, "");
    file.string("format", choice.images.format, "");
    model(&mut file, request, choice);
    match choice.head {
        Head::None => file.remark(
            "To train a head, add [captions] and [pairs] with the captions of the images, and [train]; see docs/inputs.md.",
        ),
        _ => train(&mut file, choice),
    }
    predict(&mut file, choice);
    file.text
}

fn captions(file: &mut File, choice: &Choice, pairs: &Pairs) {
    file.section("captions", "");
    if let Some(list) = &choice.list {
        file.string("list", list, "captions to rank");
    }
    file.string("classes", "train", "train on the captions of [pairs]; \"list\": on those of a list only");
    file.section("pairs", "captions of the images");
    if pairs.shards.is_empty() {
        file.list("shards", &[], "empty: the files of [images]");
    } else {
        file.list("shards", &pairs.shards, "");
    }
    if let Some(format) = pairs.format {
        file.string("format", format, "");
    }
    if let Some(column) = &pairs.url_column {
        file.string("url_column", column, "column with the name of the image");
    }
    if let Some(column) = &pairs.caption_column {
        file.string("caption_column", column, "column with the caption");
    }
    if let Some(origin) = pairs.folder_captions {
        file.string("folder_captions", origin, "\"metadata\", \"text\" (NAME.txt) or \"folders\" (their names)");
    }
}

fn model(file: &mut File, request: &InitRequest, choice: &Choice) {
    if let Some(dim) = choice.images.feature_dim {
        file.section("model", "none: the files hold features");
        file.string("features", "published", "");
        file.key("feature_dim", dim, "numbers in a row");
    } else {
        backbone(file, request);
    }
    text_encoder(file, request, choice);
}

/// Returns the comment on a model.
fn downloaded(name: &str) -> &'static str {
    if name.starts_with("hf:") { "downloaded once; or a local directory" } else { "" }
}

fn backbone(file: &mut File, request: &InitRequest) {
    file.section("model", "the frozen backbone");
    if let Some(model) = &request.model {
        file.string("checkpoint", model, downloaded(model));
    } else {
        file.string("checkpoint", MODEL, downloaded(MODEL));
        file.string("pool", "cls+mean", "");
    }
}

fn text_encoder(file: &mut File, request: &InitRequest, choice: &Choice) {
    if choice.head != Head::Text {
        return;
    }
    file.section("text", "the frozen text encoder");
    if let Some(encoder) = &request.encoder {
        file.string("encoder", encoder, downloaded(encoder));
        file.comment(
            "prefix = \"query: \"                    # text before every caption, if the encoder was trained with one",
        );
    } else {
        file.string("encoder", ENCODER.0, "for about a hundred languages");
        file.string("prefix", ENCODER.1, "as this encoder was trained");
    }
}

fn train(file: &mut File, choice: &Choice) {
    let small = choice.images.count.is_some_and(|count| count < SMALL);
    file.section("head", "");
    if choice.head == Head::Text {
        file.string("kind", "text", "ranks any captions, also those it was not trained on");
    } else {
        file.string("kind", "classes", "ranks the captions it was trained on");
    }
    file.section("train", "");
    file.key("epochs", if small { 10 } else { 1 }, "passes over the images");
    if choice.head == Head::Text {
        let batch = if small { 256 } else { 4096 };
        file.key("batch_size", batch, "captions that are told apart in one batch");
        file.string("schedule", "cosine", "");
    } else {
        file.key(
            "learning_rate",
            "[1e-3, 1e-2, 1e-1]",
            "all are tried side by side; the best on the images held out is kept",
        );
    }
    file.key("validation_fraction", if small { 0.1 } else { 0.005 }, "share of the images held out");
}

fn predict(file: &mut File, choice: &Choice) {
    if choice.head == Head::None && choice.images.test.is_empty() {
        return;
    }
    if choice.images.test.is_empty() {
        file.remark(
            "To rank captions for other images, add:\n\n[predict]\nimages = [\"test-images/\"]             # in the same form as [images]\ntop_k = 5\ncheckpoint = \"best\"",
        );
        return;
    }
    if choice.head == Head::None {
        return;
    }
    file.section("predict", "captions for the test images, best first");
    file.list("images", &choice.images.test, "");
    match &choice.ids {
        Some(ids) => file.string("ids", ids, "ids and their images"),
        None => file.comment("ids = \"test.tsv\"                      # columns id, image_url; without it the names of the images are ids"),
    }
    if let Some(truth) = &choice.truth {
        file.string("truth", truth, "right captions: the run ends with a score");
    }
    file.string("checkpoint", "best", "best on the images held out");
}
