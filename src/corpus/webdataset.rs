//! Parsers of tar archives in the layout of the `webdataset` library: consecutive members with one key are one sample.
//!
//! The key of `a/0001.jpg` is `a/0001`: everything up to the first dot of the file name. Hidden files and files without an
//! extension belong to no sample. An image is named by a URL of its `KEY.json`, or `FILE/KEY`.

use crate::corpus::caption_queue::{CaptionQueue, CaptionedRow};
use crate::corpus::columns::{ColumnKind, ImageColumns, PairColumns};
use crate::corpus::error::CorpusError;
use crate::corpus::images::{EncodedImage, ImageRow, ImageRowProblem, check_row, displayable_url};
use crate::corpus::json_lines::{Choice, JsonCaptions};
use crate::corpus::pairs::{PairCounts, PairProblem, PairRow};
use crate::corpus::rows::{PushParser, ResumePoint};
use crate::corpus::tar::{Member, TarMembers, point};

/// Extensions of members with an image.
const IMAGE_EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "img"];
/// Extensions of members with a caption. `cls` has the number or name of a class.
const TEXT_EXTENSIONS: [&str; 4] = ["txt", "text", "caption", "cls"];
/// Keys of `KEY.json` with the URL of the image. Its other names are not unique.
const URL_KEYS: [&str; 3] = ["image_url", "url", "URL"];
/// Upper bound on a caption or a `KEY.json`.
const MAX_TEXT_BYTES: u64 = 4 << 20;

/// Key and lower-case extension of a member; `None` if it belongs to no sample.
fn split_name(name: &[u8]) -> Option<(&[u8], String)> {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let file = name.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let dot = file + name.get(file..)?.iter().position(|byte| *byte == b'.')?;
    if dot == file {
        return None;
    }
    Some((&name[..dot], String::from_utf8_lossy(&name[dot + 1..]).to_lowercase()))
}

/// Members of one sample that are in use.
#[derive(Debug, Default)]
struct Sample {
    key: Vec<u8>,
    /// Offset of its first header.
    offset: u64,
    /// The first image, with its extension.
    image: Option<Member>,
    text: Option<Member>,
    json: Option<Member>,
}

/// Groups the members of an archive to samples.
#[derive(Debug)]
struct Samples {
    members: TarMembers,
    /// Extensions of members to keep, and the upper bounds on their sizes.
    images: (Vec<String>, u64),
    texts: Vec<String>,
    open: Option<Sample>,
    next_row: u64,
    finished: bool,
}

impl Samples {
    fn new(images: (Vec<String>, u64), texts: Vec<String>, start: ResumePoint) -> Self {
        let members = TarMembers::new(start.byte_offset);
        Self { members, images, texts, open: None, next_row: start.number, finished: false }
    }

    /// Returns the next sample and its row; `None` if another block is needed or the archive has ended.
    fn next(&mut self) -> Result<Option<(u64, Sample)>, String> {
        loop {
            let (images, texts) = (&self.images, &self.texts);
            let wants = |name: &[u8], size: u64| {
                let Some((_, extension)) = split_name(name) else { return false };
                (images.0.contains(&extension) && size <= images.1)
                    || ((texts.contains(&extension) || extension == "json") && size <= MAX_TEXT_BYTES)
            };
            let Some(member) = self.members.next(wants)? else {
                let last = if self.finished { self.open.take() } else { None };
                return Ok(last.map(|sample| self.number(sample)));
            };
            let Some((key, extension)) = split_name(&member.name) else { continue };
            let mut done = None;
            if self.open.as_ref().is_none_or(|open| open.key != key) {
                let next = Sample { key: key.to_vec(), offset: member.offset, ..Sample::default() };
                done = self.open.replace(next);
            }
            let Some(open) = &mut self.open else { continue };
            let slot = if self.images.0.contains(&extension) {
                Some(&mut open.image)
            } else if self.texts.contains(&extension) {
                Some(&mut open.text)
            } else if extension == "json" {
                Some(&mut open.json)
            } else {
                None
            };
            if let Some(slot) = slot {
                slot.get_or_insert(member);
            }
            if let Some(done) = done {
                return Ok(Some(self.number(done)));
            }
        }
    }

    fn number(&mut self, sample: Sample) -> (u64, Sample) {
        self.next_row += 1;
        (self.next_row - 1, sample)
    }

    /// Returns where the next sample begins. It is known once one of its members was read.
    fn resume_point(&self) -> Option<ResumePoint> {
        self.open.as_ref().map(|open| point(open.offset, self.next_row))
    }

    fn feed(&mut self, block: &[u8]) {
        self.members.feed(block);
    }

    fn finish(&mut self) {
        self.members.finish();
        self.finished = true;
    }
}

fn damaged(file: &str, detail: String) -> CorpusError {
    CorpusError::Container { file: file.to_owned(), format: "a tar archive", detail }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Parses the images of an archive.
#[derive(Debug)]
pub struct WebDatasetImages {
    file: String,
    short_name: String,
    samples: Samples,
    max_image_bytes: u64,
    url: Choice,
    url_is_set: bool,
    /// The sample of the current row, and its name.
    sample: Sample,
    name: Vec<u8>,
}

impl WebDatasetImages {
    /// Creates a parser whose first block starts at `point` of `file`; errors quote that name. Images without a URL are named
    /// after `short_name` and their key.
    pub fn new(file: &str, short_name: &str, columns: &ImageColumns, max_image_bytes: u64, start: ResumePoint) -> Self {
        let extensions =
            columns.image.as_ref().map_or_else(|| owned(&IMAGE_EXTENSIONS), |name| vec![name.to_lowercase()]);
        Self {
            file: file.to_owned(),
            short_name: short_name.to_owned(),
            samples: Samples::new((extensions, max_image_bytes), Vec::new(), start),
            max_image_bytes,
            url: Choice::new(ColumnKind::ImageUrl, columns.url.as_deref(), &URL_KEYS),
            url_is_set: columns.url.is_some(),
            sample: Sample::default(),
            name: Vec::new(),
        }
    }

    /// Returns where the next row begins, if parsing can resume there.
    pub fn resume_point(&self) -> Option<ResumePoint> {
        self.samples.resume_point()
    }

    /// Returns the next row, or `None` if another block is needed or the file has ended.
    ///
    /// # Errors
    /// When the archive is damaged or ends early.
    #[expect(clippy::should_implement_trait, reason = "the row borrows from the reader, which `Iterator` cannot say")]
    pub fn next(&mut self) -> Result<Option<ImageRow<'_>>, CorpusError> {
        let Some((row, sample)) = self.samples.next().map_err(|detail| damaged(&self.file, detail))? else {
            return Ok(None);
        };
        self.sample = sample;
        let Sample { key, image, json, .. } = &self.sample;
        let bad = |reason, detail: String| ImageRow::Bad { row, reason, detail, image_url: displayable_url(key) };
        let url = match json {
            None => None,
            Some(Member { content: None, size, .. }) => {
                let detail = format!("its JSON has {size} bytes, over the limit of {MAX_TEXT_BYTES}");
                return Ok(Some(bad(ImageRowProblem::RowTooLong, detail)));
            }
            Some(Member { content: Some(json), .. }) => match self.url.columns.pick(json) {
                Ok(picked) => picked.into_iter().flatten().flatten().next(),
                Err(detail) => return Ok(Some(bad(ImageRowProblem::InvalidJson, detail))),
            },
        };
        let name = match url {
            Some(url) => url.into_owned().into_bytes(),
            None if self.url_is_set => Vec::new(),
            None => [self.short_name.as_bytes(), b"/", key].concat(),
        };
        let content = match image {
            Some(Member { content: Some(content), .. }) => content.as_slice(),
            Some(Member { content: None, size, .. }) => {
                let detail = format!("the image has {size} bytes, over the limit of {}", self.max_image_bytes);
                return Ok(Some(bad(ImageRowProblem::RowTooLong, detail)));
            }
            None => &[],
        };
        self.name = name;
        Ok(Some(check_row(row, &self.name, EncodedImage::File(content))))
    }
}

impl PushParser for WebDatasetImages {
    fn feed(&mut self, block: &[u8]) {
        self.samples.feed(block);
    }

    fn finish(&mut self) {
        self.samples.finish();
    }
}

/// Parses the captions of an archive: those of `KEY.json` if it has one, else of `KEY.txt`.
#[derive(Debug)]
pub struct WebDatasetPairs {
    file: String,
    short_name: String,
    samples: Samples,
    captions: JsonCaptions,
    queue: CaptionQueue,
}

impl WebDatasetPairs {
    /// Creates a parser whose first block starts at `start` of `file`, with the `counts` of the rows before it. Images without a
    /// URL are named as [`WebDatasetImages`] names them. An empty `languages` selects all.
    pub fn new(
        (file, short_name): (&str, &str),
        columns: &PairColumns,
        languages: &[String],
        (start, counts): (ResumePoint, PairCounts),
    ) -> Self {
        let texts = columns.caption.as_ref().map_or_else(|| owned(&TEXT_EXTENSIONS), |name| vec![name.to_lowercase()]);
        Self {
            file: file.to_owned(),
            short_name: short_name.to_owned(),
            samples: Samples::new((Vec::new(), 0), texts, start),
            captions: JsonCaptions::new(columns, &URL_KEYS),
            queue: CaptionQueue::new(languages, counts),
        }
    }

    /// Returns where the next sample begins, if parsing can resume there. All pairs of earlier samples must have been returned.
    pub fn resume_point(&self) -> Option<ResumePoint> {
        self.samples.resume_point()
    }

    /// Returns the counts of the pairs so far.
    pub fn counts(&self) -> &PairCounts {
        self.queue.counts()
    }

    /// Returns the next pair, or `None` if another block is needed or the file has ended.
    ///
    /// # Errors
    /// When the archive is damaged or ends early.
    #[expect(clippy::should_implement_trait, reason = "the row borrows from the reader, which `Iterator` cannot say")]
    pub fn next(&mut self) -> Result<Option<PairRow<'_>>, CorpusError> {
        if self.queue.is_empty() {
            let sample = self.samples.next().map_err(|detail| damaged(&self.file, detail))?;
            let Some((row, sample)) = sample else { return Ok(None) };
            let row = self.read_captions(row, sample);
            self.queue.push(row);
        }
        Ok(self.queue.next())
    }

    fn read_captions(&mut self, row: u64, Sample { key, text, json, .. }: Sample) -> CaptionedRow {
        let (mut image_url, mut captions) = (Vec::new(), Vec::new());
        match json.map(|member| member.content) {
            None => {}
            Some(None) => return CaptionedRow::unusable(row, PairProblem::RowTooLong),
            Some(Some(json)) => match self.captions.pick(&json) {
                Ok(picked) => (image_url, captions) = picked,
                Err(_) => return CaptionedRow::unusable(row, PairProblem::InvalidJson),
            },
        }
        if image_url.is_empty() && !self.captions.url_is_set() {
            image_url = [self.short_name.as_bytes(), b"/", &key].concat();
        }
        match text.map(|member| member.content) {
            Some(Some(text)) if captions.is_empty() => captions.push((Vec::new(), text.trim_ascii().to_vec())),
            Some(None) if captions.is_empty() => return CaptionedRow::unusable(row, PairProblem::RowTooLong),
            _ => {}
        }
        CaptionedRow { row, image_url, captions, problem: None }
    }
}

impl PushParser for WebDatasetPairs {
    fn feed(&mut self, block: &[u8]) {
        self.samples.feed(block);
    }

    fn finish(&mut self) {
        self.samples.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: ResumePoint = ResumePoint { byte_offset: 0, number: 0 };

    fn pack(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn archive() -> Vec<u8> {
        pack(&[
            ("./a/1.jpg", b"J1"),
            ("a/1.txt", b"one\n"),
            ("README", b"no extension"),
            ("a/2.json", br#"{"url": "http://2", "caption": "two", "key": "2"}"#),
            ("a/2.seg.png", b"mask"),
            ("a/2.PNG", b"P2"),
            ("a/2.txt", b"text two"),
            ("a/.hidden.jpg", b"H"),
            ("3.txt", b"only text"),
            ("4.webp", &[4; 1000]),
            ("5.jpg", b"J5"),
            ("5.json", b"{"),
            ("6.jpg", b""),
        ])
    }

    fn read_images(archive: &[u8], columns: &ImageColumns, start: ResumePoint) -> Vec<String> {
        let mut rows = WebDatasetImages::new("dir/x.tar", "x.tar", columns, 500, start);
        let mut seen = Vec::new();
        let mut pull = |rows: &mut WebDatasetImages| {
            while let Some(row) = rows.next().unwrap() {
                seen.push(match row {
                    ImageRow::Ok { row, image_url, image } => {
                        format!("{row} {image_url} {}", String::from_utf8_lossy(image.bytes()))
                    }
                    ImageRow::Bad { row, reason, image_url, .. } => {
                        format!("{row} {reason} {}", image_url.unwrap_or_default())
                    }
                });
            }
        };
        for block in archive[start.byte_offset as usize..].chunks(700) {
            rows.feed(block);
            pull(&mut rows);
        }
        rows.finish();
        pull(&mut rows);
        seen
    }

    #[test]
    fn members_with_one_key_are_a_row() {
        let expected = [
            "0 x.tar/a/1 J1",
            "1 http://2 P2",
            "2 missing_data x.tar/3",
            "3 row_too_long 4",
            "4 invalid_json 5",
            "5 missing_data x.tar/6",
        ];
        assert_eq!(read_images(&archive(), &ImageColumns::default(), START), expected);
        let columns = ImageColumns { image: Some("seg.png".to_owned()), ..ImageColumns::default() };
        assert_eq!(read_images(&archive(), &columns, START)[1], "1 http://2 mask");
    }

    #[test]
    fn parsing_resumes_at_any_row() {
        let archive = archive();
        let whole = read_images(&archive, &ImageColumns::default(), START);
        let mut rows = WebDatasetImages::new("x.tar", "x.tar", &ImageColumns::default(), 500, START);
        rows.feed(&archive);
        let mut resumed = 0;
        while rows.next().unwrap().is_some() {
            let Some(point) = rows.resume_point() else { continue };
            assert_eq!(read_images(&archive, &ImageColumns::default(), point), whole[point.number as usize..]);
            resumed += 1;
        }
        assert_eq!(resumed, 5);
    }

    #[test]
    fn captions_come_from_json_or_text() {
        let read = |columns: &PairColumns| {
            let mut pairs = WebDatasetPairs::new(("x.tar", "x.tar"), columns, &[], (START, PairCounts::default()));
            pairs.feed(&archive());
            pairs.finish();
            let mut seen = Vec::new();
            while let Some(row) = pairs.next().unwrap() {
                seen.push(match row {
                    PairRow::Pair(pair) => format!("{} {}", pair.image_url, pair.target),
                    PairRow::Skipped { row, reason } => format!("{row} {reason}"),
                });
            }
            seen
        };
        let expected = [
            "x.tar/a/1 one",
            "http://2 two",
            "x.tar/3 only text",
            "3 missing_caption",
            "4 invalid_json",
            "5 missing_caption",
        ];
        assert_eq!(read(&PairColumns::default()), expected);
        let columns = PairColumns { caption: Some("txt".to_owned()), ..PairColumns::default() };
        assert_eq!(read(&columns)[1], "http://2 text two");
    }
}
