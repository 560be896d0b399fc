//! Parsers of JSON lines: images in base64, and captions. One object a line, plain or as Wikimedia publishes the corpus.
//!
//! A line that is not a JSON object costs one row. Each object is read by itself, so that parsing can resume at any line:
//! a column without a name in the configuration is the first usual one that the object has.

use std::borrow::Cow;

use crate::corpus::caption_queue::{CaptionQueue, CaptionedRow, join_captions};
use crate::corpus::columns::{ColumnKind, ImageColumns, PairColumns, language_candidates, list};
use crate::corpus::error::CorpusError;
use crate::corpus::images::{EncodedImage, ImageRow, ImageRowProblem, check_row};
use crate::corpus::json::{JsonColumns, Values};
use crate::corpus::lines::{Line, Lines};
use crate::corpus::pairs::{PairCounts, PairProblem, PairRow};
use crate::corpus::rows::{PushParser, ResumePoint};

/// Objects without a required column after which the file counts as lacking it.
const OBJECTS_TRIED: u64 = 1000;

/// Column that is looked for under one or several names.
#[derive(Debug)]
pub(super) struct Choice {
    kind: ColumnKind,
    /// Name in the configuration, or the usual ones.
    pub(super) names: Vec<String>,
    is_set: bool,
    pub(super) columns: JsonColumns,
    /// True if an object had the column.
    found: bool,
    /// Objects read before.
    objects: u64,
}

impl Choice {
    pub(super) fn new(kind: ColumnKind, set: Option<&str>, usual: &[&str]) -> Self {
        let names: Vec<String> = match set {
            Some(name) => vec![name.to_owned()],
            None => usual.iter().map(|name| (*name).to_owned()).collect(),
        };
        let columns = JsonColumns::new(names.iter().map(String::as_str));
        Self { kind, names, is_set: set.is_some(), columns, found: false, objects: 0 }
    }

    /// Takes the first column that has a value, with its position among the names.
    fn take<'a>(&mut self, picked: &mut [Values<'a>]) -> Option<(usize, Values<'a>)> {
        self.objects += 1;
        let column = picked.iter().position(|values| values.iter().any(Option::is_some))?;
        self.found = true;
        Some((column, std::mem::take(&mut picked[column])))
    }

    /// Fails if no object had the column, and enough were read.
    fn require(&self, file: &str, at_end: bool) -> Result<(), CorpusError> {
        if self.found || self.objects == 0 || (self.objects < OBJECTS_TRIED && !at_end) {
            return Ok(());
        }
        let (file, key) = (file.to_owned(), self.kind.key());
        let found = format!("other keys in its first {} objects", self.objects);
        if self.is_set {
            return Err(CorpusError::MissingColumn { file, column: self.names.join(""), key, found });
        }
        let (content, tried) = (self.kind.content(), list(&self.names));
        Err(CorpusError::NoUsualColumn { file, content, tried, key, found })
    }
}

/// URL of an image, and its captions as pairs of language and text.
type UrlAndCaptions = (Vec<u8>, Vec<(Vec<u8>, Vec<u8>)>);

/// Splits the columns that were picked at once into those of each choice.
fn split_picked<'a, 'v>(picked: &'a mut [Values<'v>], first: &Choice) -> (&'a mut [Values<'v>], &'a mut [Values<'v>]) {
    picked.split_at_mut(first.names.len())
}

/// Returns the first value of a column that is not null.
fn first_text(taken: Option<(usize, Values<'_>)>) -> Option<Cow<'_, str>> {
    taken.and_then(|(_, values)| values.into_iter().flatten().next())
}

/// Parses images in JSON lines.
#[derive(Debug)]
pub struct JsonImageRows {
    file: String,
    /// Name of the file in names of images.
    short_name: String,
    lines: Lines,
    finished: bool,
    columns: JsonColumns,
    url: Choice,
    image: Choice,
    /// Values of the current row that are not slices of the line.
    url_text: String,
    image_text: String,
}

impl JsonImageRows {
    /// Creates a parser whose first block starts at `point` of `file`; errors quote that name. Images without a URL are named
    /// after `short_name` and their row.
    pub fn new(
        file: &str,
        short_name: &str,
        columns: &ImageColumns,
        max_line_bytes: usize,
        point: ResumePoint,
    ) -> Self {
        let url = Choice::new(ColumnKind::ImageUrl, columns.url.as_deref(), ColumnKind::ImageUrl.usual());
        let image = Choice::new(ColumnKind::Image, columns.image.as_deref(), ColumnKind::Image.usual());
        Self {
            file: file.to_owned(),
            short_name: short_name.to_owned(),
            lines: Lines::new(max_line_bytes, point),
            finished: false,
            columns: JsonColumns::new(url.names.iter().chain(&image.names).map(String::as_str)),
            url,
            image,
            url_text: String::new(),
            image_text: String::new(),
        }
    }

    /// Returns where the next row begins, if parsing can resume there.
    pub fn resume_point(&self) -> Option<ResumePoint> {
        self.lines.resume_point()
    }

    /// Frees the memory that unusually long rows needed.
    pub fn trim(&mut self) {
        self.lines.trim();
        (self.url_text, self.image_text) = (String::new(), String::new());
    }

    /// Returns the next row, or `None` if another block is needed or the file has ended.
    ///
    /// # Errors
    /// Fails if no object has a column that is required.
    #[expect(clippy::should_implement_trait, reason = "the row borrows from the reader, which `Iterator` cannot say")]
    pub fn next(&mut self) -> Result<Option<ImageRow<'_>>, CorpusError> {
        let limit_bytes = self.lines.max_line_bytes();
        self.image.require(&self.file, false)?;
        let (row, text) = match self.lines.next() {
            Some(Line::Text { number, text }) => (number, text),
            Some(Line::Oversized { number: row, byte_offset }) => {
                let reason = ImageRowProblem::RowTooLong;
                let detail = format!("longer than {limit_bytes} bytes, at byte {byte_offset} of the shard");
                return Ok(Some(ImageRow::Bad { row, reason, detail, image_url: None }));
            }
            None => {
                self.image.require(&self.file, self.finished)?;
                return Ok(None);
            }
        };
        let mut picked = match self.columns.pick(text) {
            Ok(picked) => picked,
            Err(detail) => {
                let reason = ImageRowProblem::InvalidJson;
                return Ok(Some(ImageRow::Bad { row, reason, detail, image_url: None }));
            }
        };
        let (urls, images) = split_picked(&mut picked, &self.url);
        let image = match first_text(self.image.take(images)) {
            Some(Cow::Borrowed(text)) => text,
            Some(Cow::Owned(text)) => {
                self.image_text = text;
                &self.image_text
            }
            None => "",
        };
        let url = match first_text(self.url.take(urls)) {
            Some(Cow::Borrowed(text)) => text,
            other => {
                let is_set = self.url.is_set;
                let unnamed = || if is_set { String::new() } else { format!("{}/{row}", self.short_name) };
                self.url_text = other.map_or_else(unnamed, Cow::into_owned);
                &self.url_text
            }
        };
        Ok(Some(check_row(row, url.as_bytes(), EncodedImage::Base64(image.as_bytes()))))
    }
}

impl PushParser for JsonImageRows {
    fn feed(&mut self, block: &[u8]) {
        self.lines.feed(block);
    }

    fn finish(&mut self) {
        self.lines.finish();
        self.finished = true;
    }
}

/// Picks URL and captions out of JSON objects.
#[derive(Debug)]
pub(super) struct JsonCaptions {
    columns: JsonColumns,
    url: Choice,
    caption: Choice,
    /// Names of the column with the language, for each name of the caption's column.
    languages: Vec<Vec<String>>,
}

impl JsonCaptions {
    pub(super) fn new(columns: &PairColumns, usual_urls: &[&str]) -> Self {
        let url = Choice::new(ColumnKind::PairUrl, columns.url.as_deref(), usual_urls);
        let caption = Choice::new(ColumnKind::Caption, columns.caption.as_deref(), ColumnKind::Caption.usual());
        let language = |caption: &String| match &columns.language {
            Some(name) => vec![name.clone()],
            None => language_candidates(caption),
        };
        let languages: Vec<Vec<String>> = caption.names.iter().map(language).collect();
        let names = url.names.iter().chain(&caption.names).chain(languages.iter().flatten());
        Self { columns: JsonColumns::new(names.map(String::as_str)), url, caption, languages }
    }

    /// Returns the URL and the captions of an object. The URL is empty if the object has none.
    ///
    /// # Errors
    /// When the text is not a JSON object.
    pub(super) fn pick(&mut self, text: &[u8]) -> Result<UrlAndCaptions, String> {
        let owned = |values: Values<'_>| -> Vec<Option<Vec<u8>>> {
            values.into_iter().map(|value| value.map(|text| text.into_owned().into_bytes())).collect()
        };
        let mut picked = self.columns.pick(text)?;
        let (urls, rest) = split_picked(&mut picked, &self.url);
        let url = self.url.take(urls).and_then(|(_, values)| owned(values).into_iter().flatten().next());
        let (captions, mut languages) = split_picked(rest, &self.caption);
        let Some((column, captions)) = self.caption.take(captions) else {
            return Ok((url.unwrap_or_default(), Vec::new()));
        };
        let skipped: usize = self.languages.iter().take(column).map(Vec::len).sum();
        let count = self.languages.get(column).map_or(0, Vec::len);
        languages = languages.get_mut(skipped..skipped + count).unwrap_or_default();
        let language = languages.iter_mut().find(|values| !values.is_empty()).map(std::mem::take).unwrap_or_default();
        Ok((url.unwrap_or_default(), join_captions(owned(captions), owned(language))))
    }

    /// Returns whether the configuration names the column of the URL.
    pub(super) fn url_is_set(&self) -> bool {
        self.url.is_set
    }

    /// Fails if no object had a caption, and enough were read.
    pub(super) fn require_captions(&self, file: &str, at_end: bool) -> Result<(), CorpusError> {
        self.caption.require(file, at_end)
    }
}

/// Parses captions in JSON lines.
#[derive(Debug)]
pub struct JsonPairs {
    file: String,
    short_name: String,
    lines: Lines,
    finished: bool,
    captions: JsonCaptions,
    queue: CaptionQueue,
}

impl JsonPairs {
    /// Creates a parser whose first block starts at `point` of `file`, with the `counts` of the rows before it. Images without a
    /// URL are named as [`JsonImageRows`] names them. An empty `languages` selects all.
    pub fn new(
        (file, short_name): (&str, &str),
        columns: &PairColumns,
        languages: &[String],
        max_line_bytes: usize,
        (point, counts): (ResumePoint, PairCounts),
    ) -> Self {
        Self {
            file: file.to_owned(),
            short_name: short_name.to_owned(),
            lines: Lines::new(max_line_bytes, point),
            finished: false,
            captions: JsonCaptions::new(columns, ColumnKind::PairUrl.usual()),
            queue: CaptionQueue::new(languages, counts),
        }
    }

    /// Returns where the next line begins, if parsing can resume there. All pairs of earlier lines must have been returned.
    pub fn resume_point(&self) -> Option<ResumePoint> {
        self.lines.resume_point()
    }

    /// Returns the counts of the pairs so far.
    pub fn counts(&self) -> &PairCounts {
        self.queue.counts()
    }

    /// Returns the next pair, or `None` if another block is needed or the file has ended.
    ///
    /// # Errors
    /// Fails if no object has a caption.
    #[expect(clippy::should_implement_trait, reason = "the row borrows from the reader, which `Iterator` cannot say")]
    pub fn next(&mut self) -> Result<Option<PairRow<'_>>, CorpusError> {
        if self.queue.is_empty() {
            self.captions.require_captions(&self.file, false)?;
            match self.lines.next() {
                Some(Line::Text { number: row, text }) => self.queue.push(match self.captions.pick(text) {
                    Ok((url, captions)) => {
                        let unnamed = url.is_empty() && !self.captions.url_is_set();
                        let image_url = if unnamed { format!("{}/{row}", self.short_name).into_bytes() } else { url };
                        CaptionedRow { row, image_url, captions, problem: None }
                    }
                    Err(_) => CaptionedRow::unusable(row, PairProblem::InvalidJson),
                }),
                Some(Line::Oversized { number: row, .. }) => {
                    self.queue.push(CaptionedRow::unusable(row, PairProblem::RowTooLong));
                }
                None => {
                    self.captions.require_captions(&self.file, self.finished)?;
                    return Ok(None);
                }
            }
        }
        Ok(self.queue.next())
    }
}

impl PushParser for JsonPairs {
    fn feed(&mut self, block: &[u8]) {
        self.lines.feed(block);
    }

    fn finish(&mut self) {
        self.lines.finish();
        self.finished = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: ResumePoint = ResumePoint { byte_offset: 0, number: 0 };

    fn read_images(text: &str, columns: &ImageColumns) -> Result<Vec<String>, CorpusError> {
        let mut rows = JsonImageRows::new("dir/part.jsonl", "part.jsonl", columns, 300, START);
        let mut seen = Vec::new();
        for block in text.as_bytes().chunks(11) {
            rows.feed(block);
            while let Some(row) = rows.next()? {
                seen.push(show(&row));
            }
        }
        rows.finish();
        while let Some(row) = rows.next()? {
            seen.push(show(&row));
        }
        Ok(seen)
    }

    fn show(row: &ImageRow<'_>) -> String {
        match row {
            ImageRow::Ok { row, image_url, image } => {
                format!("{row} {image_url} {}", String::from_utf8_lossy(image.bytes()))
            }
            ImageRow::Bad { row, reason, .. } => format!("{row} {reason}"),
        }
    }

    #[test]
    fn rows_of_the_published_layout_are_read() {
        let text = concat!(
            r#"{"b64_bytes": "QU\/D", "image_url": "http://a", "embedding": [0.5, 1e9], "wit_features": [{"language": "en"}]}"#,
            "\n\nnot json\n",
            r#"{"image_url": "http://b", "b64_bytes": null}"#,
            "\n",
            r#"{"b64_bytes": "QUJD"}"#,
        );
        assert_eq!(
            read_images(text, &ImageColumns::default()).unwrap(),
            ["0 http://a QU/D", "1 invalid_json", "2 missing_data", "3 part.jsonl/3 QUJD"]
        );
        let named = ImageColumns { url: Some("link".to_owned()), image: Some("i.b".to_owned()) };
        let rows = read_images("{\"link\": 7, \"i\": {\"b\": \"QQ==\"}}\n{\"i\": {\"b\": \"QQ==\"}}", &named);
        assert_eq!(rows.unwrap(), ["0 7 QQ==", "1 missing_url"]);
    }

    /// The published copy has 120 records whose unused keys are misformatted.
    #[test]
    fn misformatted_unused_keys_do_not_matter() {
        let text = concat!(
            r#"{"image_url": "http://a", "b64_bytes": "QUJD", "original_height": "12\tpx", "mime_type": [null, {"x": 1e999}],"#,
            r#" "caption_attribution_description": "\ud83d cut", "original_width": -0.0}"#,
        );
        assert_eq!(read_images(text, &ImageColumns::default()).unwrap(), ["0 http://a QUJD"]);
        let text = r#"{"image_url": "http://a", "original_width": {}, "wit_features": [{"caption_title_and_reference_description": "A", "mime_type": 7}]}"#;
        assert_eq!(read_pairs(text, &PairColumns::default(), &[]).unwrap().0.len(), 1);
    }

    #[test]
    fn file_without_images_is_refused() {
        let error = read_images("{\"url\": \"a\"}\n{}\n", &ImageColumns::default()).unwrap_err().to_string();
        assert!(error.starts_with("`dir/part.jsonl` has no column with the image: it has other keys"), "{error}");
        assert!(error.ends_with("name the column in `images.image_column`"), "{error}");
    }

    fn read_pairs(text: &str, columns: &PairColumns, languages: &[&str]) -> Result<(Vec<String>, u64), CorpusError> {
        let languages: Vec<String> = languages.iter().map(|&language| language.to_owned()).collect();
        let start = (START, PairCounts::default());
        let mut pairs = JsonPairs::new(("part.jsonl", "part.jsonl"), columns, &languages, 1000, start);
        pairs.feed(text.as_bytes());
        pairs.finish();
        let mut seen = Vec::new();
        while let Some(row) = pairs.next()? {
            seen.push(match row {
                PairRow::Pair(pair) => format!("{} {}: {}", pair.image_url, pair.language, pair.target),
                PairRow::Skipped { row, reason } => format!("{row} {reason}"),
            });
        }
        Ok((seen, pairs.counts().rows))
    }

    #[test]
    fn each_caption_of_an_object_is_a_pair() {
        let text = concat!(
            r#"{"image_url": "u", "wit_features": [{"language": "en", "caption_title_and_reference_description": "A"},"#,
            r#"{"language": "de", "caption_title_and_reference_description": "B"}, {"language": "fr"}]}"#,
            "\n{\"url\": \"v\", \"language\": \"en\", \"caption\": \"C\"}\n{\"url\": \"w\"}\n[]\n",
            r#"{"url": "x", "captions": ["D", "E"]}"#,
        );
        let (seen, rows) = read_pairs(text, &PairColumns::default(), &[]).unwrap();
        assert_eq!(seen, ["u en: A", "u de: B", "v en: C", "2 missing_caption", "3 invalid_json", "x : D", "x : E"]);
        assert_eq!(rows, 7);
        let (seen, _) = read_pairs(text, &PairColumns::default(), &["de"]).unwrap();
        assert_eq!(seen.iter().filter(|row| !row.ends_with("language_filtered")).count(), 3, "{seen:?}");
    }

    #[test]
    fn file_without_captions_is_refused() {
        let columns = PairColumns { caption: Some("title".to_owned()), ..PairColumns::default() };
        let error = read_pairs("{\"url\": \"v\", \"caption\": \"C\"}\n", &columns, &[]).unwrap_err().to_string();
        assert!(error.contains("no column `title`, which `pairs.caption_column` names"), "{error}");
    }
}
