//! Captions that a captioning model writes: `[caption]`.

use super::super::raw::RawPipeline;
use super::{Problems, check_checkpoint, non_empty};
use crate::types::{HeadKind, ImageFormat};

/// Captions to rank for each image if `[predict]` does not say how many.
const TOP_K: u32 = 5;

/// Checked `[caption]`.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionConfig {
    /// Directory in Hugging Face layout, or a valid `hf:ORG/NAME[@REVISION]`.
    pub checkpoint: String,
    /// Globs of the images; at least one.
    pub images: Vec<String>,
    /// Format of the files.
    pub format: ImageFormat,
    /// File with the columns `id` and `image_url`; empty if each image is an id.
    pub ids: String,
    /// File name inside `run.dir`, ending in `.csv` or `.jsonl`.
    pub output: String,
    /// Beams of the search, from 1; `None` for the checkpoint's.
    pub num_beams: Option<u32>,
    /// Tokens of a caption at most; `None` for the checkpoint's.
    pub max_new_tokens: Option<u32>,
    /// CSV file of right captions.
    pub references: Option<String>,
    /// Captions to rank for each image by its generated one; `None` if none are ranked.
    pub rank: Option<u32>,
}

impl CaptionConfig {
    /// Returns the name of the output without its ending, which the other files are named after.
    pub fn stem(&self) -> &str {
        self.output.rsplit_once('.').map_or(self.output.as_str(), |(stem, _)| stem)
    }

    /// Returns the name of the ranked captions inside `run.dir`.
    pub fn ranked_output(&self) -> String {
        format!("{}-ranked.csv", self.stem())
    }
}

/// Checks `[caption]`.
pub(in super::super) fn check_caption(pipeline: &RawPipeline, problems: &mut Problems) -> Option<CaptionConfig> {
    let caption = pipeline.caption.as_ref()?;
    check_checkpoint("caption.checkpoint", &caption.checkpoint, problems);
    let predict = pipeline.predict.as_ref();
    let (images, format, ids) = match predict {
        Some(predict) if caption.images.is_empty() => (&predict.images, predict.format, &predict.ids),
        _ => (&caption.images, caption.format, &caption.ids),
    };
    let ids = if caption.ids.is_empty() { ids } else { &caption.ids };
    problems.refuse_if(
        images.is_empty(),
        "caption.images",
        "is required: name at least one file, glob or folder, here or in `predict.images`",
    );
    check_output(&caption.output, problems);
    let beams = caption.num_beams.unwrap_or(1);
    problems.refuse_if(!(1..=64).contains(&beams), "caption.num_beams", format!("`{beams}` must be from 1 to 64"));
    problems.refuse_if(caption.max_new_tokens == Some(0), "caption.max_new_tokens", "`0` must be at least 1");
    if caption.rank {
        let is_text = pipeline.head.kind != HeadKind::Classes;
        problems.refuse_if(
            !is_text || pipeline.text.is_none() && pipeline.head.kind == HeadKind::Text,
            "caption.rank",
            "needs a text encoder: add `[text]`, and `[head]` with `kind = \"text\"` or `\"paired\"`",
        );
        let listed = pipeline.captions.as_ref().is_some_and(|captions| !captions.list.is_empty())
            || predict.is_some_and(|predict| !predict.captions.is_empty());
        problems.refuse_if(
            !listed,
            "caption.rank",
            "needs captions to rank: name them in `predict.captions` or `captions.list`",
        );
    }
    Some(CaptionConfig {
        checkpoint: caption.checkpoint.clone(),
        images: images.clone(),
        format,
        ids: ids.clone(),
        output: caption.output.clone(),
        num_beams: caption.num_beams,
        max_new_tokens: caption.max_new_tokens,
        references: non_empty(&caption.references),
        rank: caption.rank.then(|| predict.map_or(TOP_K, |predict| predict.top_k)),
    })
}

/// Checks that a file name cannot leave the run directory, and is that of a CSV file or of JSON lines.
fn check_output(output: &str, problems: &mut Problems) {
    let stem = output.strip_suffix(".csv").or_else(|| output.strip_suffix(".jsonl"));
    let plain = stem.is_some_and(|stem| !stem.is_empty())
        && !output.starts_with(['/', '.', '-'])
        && !output.contains(['/', '\\'])
        && !output.contains(char::is_control);
    problems.refuse_if(
        !plain,
        "caption.output",
        format!("`{output}` must be a plain file name ending in `.csv` or `.jsonl`: it is written inside `run.dir`"),
    );
    let taken = ["training.csv", "report.csv", "report.jsonl"].contains(&output.to_lowercase().as_str());
    problems.refuse_if(
        taken,
        "caption.output",
        format!("`{output}` would replace another file of the run: choose another name, such as `captions.csv`"),
    );
}

#[cfg(test)]
mod tests {
    use crate::config::{AdHocCaptions, MachineFile, PipelineFile, RunConfig};

    fn check(more: &str) -> Result<RunConfig, String> {
        let text = format!("[run]\ndir='r'\n{more}");
        let file = PipelineFile::parse(&text).map_err(|error| error.to_string())?;
        RunConfig::check(file, &MachineFile::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn images_and_ids_default_to_those_of_predict() {
        let predict = "[model]\ncheckpoint='m'\n[predict]\nimages=['i']\nids='t'\n";
        let config = check(&format!("{predict}[caption]\ncheckpoint='c'\n")).unwrap();
        let caption = config.caption().unwrap();
        assert_eq!((caption.images.as_slice(), caption.ids.as_str()), (["i".to_owned()].as_slice(), "t"));
        assert_eq!((caption.ranked_output(), caption.rank), ("captions-ranked.csv".to_owned(), None));
        let other = AdHocCaptions { images: vec!["j".to_owned()], ..AdHocCaptions::default() };
        let error = config.clone().caption_with(other.clone()).unwrap_err().to_string();
        assert!(error.contains("name another file") && error.contains("--output"), "{error}");
        let config = config.caption_with(AdHocCaptions { output: Some("j.jsonl".to_owned()), ..other }).unwrap();
        let caption = config.caption().unwrap();
        assert_eq!((caption.images[0].as_str(), caption.ids.as_str(), caption.stem()), ("j", "", "j"));
    }

    #[test]
    fn values_that_cannot_work_are_refused_by_key() {
        for (more, expected) in [
            ("[caption]\nimages=['i']\n", "`caption.checkpoint`: is required"),
            ("[caption]\ncheckpoint='c'\n", "`caption.images`: is required"),
            ("[caption]\ncheckpoint='s3://b/c'\nimages=['i']\n", "`caption.checkpoint`"),
            ("[caption]\ncheckpoint='c'\nimages=['i']\noutput='../x.csv'\n", "`caption.output`"),
            ("[caption]\ncheckpoint='c'\nimages=['i']\noutput='x.txt'\n", "`caption.output`"),
            ("[caption]\ncheckpoint='c'\nimages=['i']\noutput='training.csv'\n", "`caption.output`"),
            ("[caption]\ncheckpoint='c'\nimages=['i']\nnum_beams=0\n", "`caption.num_beams`"),
            ("[caption]\ncheckpoint='c'\nimages=['i']\nmax_new_tokens=0\n", "`caption.max_new_tokens`"),
            ("[caption]\ncheckpoint='c'\nimages=['i']\nrank=true\n", "`caption.rank`: needs a text encoder"),
            ("", "nothing to run"),
        ] {
            let error = check(more).unwrap_err();
            assert!(error.contains(expected), "{more}: {error}");
        }
        let error = check("[images]\nshards=['i']\n").unwrap().caption_with(AdHocCaptions::default()).unwrap_err();
        assert!(error.to_string().starts_with("`caption`: is required"), "{error}");
    }
}
