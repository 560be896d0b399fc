//! Chunks of tokens → captions → the file of captions, and their scores.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use crate::caption::{CaptionScores, References};
use crate::catalog::{Texts, UrlSet, url_hash};
use crate::model::caption::CaptionDecoder;
use crate::objects::StoreError;
use crate::pipeline::chunk_files::FeatureSet;
use crate::pipeline::context::RunContext;
use crate::pipeline::device::{NO_TOKEN, model_error};
use crate::pipeline::error::{PipelineError, chain};
use crate::pipeline::predict::{IdSource, read_chunk, visit_ids};

/// Number of an image without a caption.
const NONE: u32 = u32::MAX;

/// Generated captions, each distinct one once.
pub(super) struct GeneratedCaptions {
    pub(super) texts: Arc<Texts>,
    /// Number of the caption of each image, by the image's position in the set of URLs.
    numbers: Vec<u32>,
}

/// Result of [`GeneratedCaptions::write`].
pub(super) struct WrittenCaptions {
    /// Ids whose caption is empty.
    pub(super) without_caption: u64,
    pub(super) scores: Option<CaptionScores>,
}

impl GeneratedCaptions {
    /// Reads the tokens of all images and decodes them.
    ///
    /// # Errors
    /// When a chunk cannot be read, or the tokenizer fails; [`PipelineError::Stopped`] if the run has to stop.
    pub(super) async fn read(
        ctx: &RunContext,
        chunks: &FeatureSet,
        decoder: &CaptionDecoder,
        urls: &UrlSet,
    ) -> Result<Self, PipelineError> {
        let (mut texts, mut numbers) = (Texts::default(), vec![NONE; urls.len()]);
        let mut known: HashMap<Box<str>, u32> = HashMap::new();
        for file in chunks.files() {
            if let Some(signal) = ctx.shutdown.signal() {
                return Err(PipelineError::Stopped(signal));
            }
            let chunk = read_chunk(chunks, file).await?;
            for (row, values) in chunk.values.chunks_exact(chunk.dim.max(1)).enumerate() {
                let Some(image) = urls.position(url_hash(chunk.rows.url(row))) else { continue };
                let tokens: Vec<u32> =
                    values.iter().take_while(|value| **value != NO_TOKEN).map(|value| *value as u32).collect();
                let text = tokio::task::block_in_place(|| decoder.decode(&tokens)).map_err(model_error)?;
                if let Some(number) = known.get(text.as_str()) {
                    numbers[image] = *number;
                    continue;
                }
                let full = || PipelineError::Input("there are too many captions".to_owned());
                numbers[image] = texts.push(&text).ok_or_else(full)?;
                known.insert(text.into(), numbers[image]);
            }
        }
        Ok(Self { texts: Arc::new(texts), numbers })
    }

    /// Returns the number of the caption of an image; `None` without one.
    pub(super) fn number(&self, image: usize) -> Option<u32> {
        self.numbers.get(image).copied().filter(|number| *number != NONE)
    }

    /// Returns the caption of an image; empty without one.
    fn caption(&self, image: Option<usize>) -> &str {
        image.and_then(|image| self.texts.get(self.number(image)?)).unwrap_or_default()
    }

    /// Writes a row for each id, in the order of the ids, and scores the captions against `references`.
    ///
    /// # Errors
    /// When the ids cannot be read again, the file cannot be written, or no id has references.
    pub(super) async fn write(
        &self,
        ctx: &RunContext,
        output: &str,
        ids: &IdSource,
        urls: &UrlSet,
        references: Option<&References>,
    ) -> Result<WrittenCaptions, PipelineError> {
        let path = ctx.dir.temporary(output)?;
        let file = File::create(&path).map_err(|error| StoreError::io(&path, "created", error))?;
        let failed = |error: std::io::Error| PipelineError::from(StoreError::io(&path, "written", error));
        let mut rows = RowWriter::new(BufWriter::new(file), output).map_err(failed)?;
        let refused = |error| PipelineError::Input(chain(&error));
        let mut scoring = references.map(|references| references.scoring(output));
        let mut without_caption = 0;
        visit_ids(&ctx.store, ids, |id| {
            let caption = self.caption(urls.position(url_hash(id.image_url)));
            without_caption += u64::from(caption.is_empty());
            if let Some(scoring) = &mut scoring {
                scoring.add(id.id, caption).map_err(refused)?;
            }
            rows.write(id.id, caption).map_err(failed)
        })
        .await?;
        rows.finish().map_err(failed)?;
        ctx.dir.publish(output)?;
        let scores = scoring.map(|scoring| tokio::task::block_in_place(|| scoring.finish())).transpose();
        Ok(WrittenCaptions { without_caption, scores: scores.map_err(refused)? })
    }
}

/// Writer of rows of an id and a caption.
enum RowWriter<W: Write> {
    Csv(Box<csv::Writer<W>>),
    JsonLines(W),
}

impl<W: Write> RowWriter<W> {
    /// Starts a file; the ending of its name decides about the format.
    fn new(mut output: W, name: &str) -> std::io::Result<Self> {
        if Path::new(name).extension().is_some_and(|ending| ending == "jsonl") {
            output.flush()?;
            return Ok(Self::JsonLines(output));
        }
        let mut writer = csv::Writer::from_writer(output);
        writer.write_record(["id", "caption"])?;
        Ok(Self::Csv(Box::new(writer)))
    }

    fn write(&mut self, id: &str, caption: &str) -> std::io::Result<()> {
        match self {
            Self::Csv(writer) => Ok(writer.write_record([id, caption])?),
            Self::JsonLines(output) => {
                serde_json::to_writer(&mut *output, &serde_json::json!({ "id": id, "caption": caption }))?;
                output.write_all(b"\n")
            }
        }
    }

    fn finish(self) -> std::io::Result<()> {
        match self {
            Self::Csv(mut writer) => writer.flush(),
            Self::JsonLines(mut output) => output.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ending_decides_about_the_format() {
        let write = |name: &str| {
            let mut bytes = Vec::new();
            let mut rows = RowWriter::new(&mut bytes, name).unwrap();
            rows.write("a", "one, \"two\"").unwrap();
            rows.write("b", "").unwrap();
            rows.finish().unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(write("x.csv"), "id,caption\na,\"one, \"\"two\"\"\"\nb,\n");
        assert_eq!(
            write("x.jsonl"),
            "{\"caption\":\"one, \\\"two\\\"\",\"id\":\"a\"}\n{\"caption\":\"\",\"id\":\"b\"}\n"
        );
    }
}
