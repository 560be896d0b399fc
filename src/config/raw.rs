//! The two files as they are written: every key with its meaning and default.
//!
//! `wikicap-pipeline config reference` prints the doc comments of sections and keys, so they are written for the person
//! who fills in a file. Here values are checked for their type alone; `validate` checks the rest.

mod caption;
mod input;
mod machine;
mod model;

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

pub(super) use caption::RawCaption;
pub(super) use input::{RawCaptions, RawChunks, RawImages, RawPairs, RawPreprocess, RawSample};
pub(super) use machine::{RawDevice, RawLimits, RawMachine, RawScratch, RawStore};
pub(super) use model::{RawHead, RawModel, RawPredict, RawText, RawTrain};

/// Returns whether a value is the default. Such keys are left out of files, so that new keys do not change old fingerprints.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A pipeline file: what to run. An absent section means a stage that does not run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPipeline {
    /// Synthetic corpus that is rendered first, if it is absent: for demonstrations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sample: Option<RawSample>,
    /// Directory of the run, and its seed.
    pub(super) run: RawRun,
    /// Captions that become classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) captions: Option<RawCaptions>,
    /// Captions of the images: rows that say which image has which caption.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pairs: Option<RawPairs>,
    /// Images to stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) images: Option<RawImages>,
    /// Decoding and resizing, from the encoded image to the model's input square.
    ///
    /// Pixels are those of Pillow's `Image.open(…).convert("RGB")`, so some images look different than in a browser:
    /// - The format is found by content: JPEG, PNG, GIF, WebP, BMP or TIFF. SVG, AVIF, HEIF and others are quarantined.
    /// - EXIF orientation is ignored, so a photo that is stored sideways stays sideways. Only a TIFF is turned upright.
    /// - Colour profiles (ICC) and PNG gamma are ignored: all samples count as sRGB.
    /// - 16-bit grey is clipped at 255, not scaled, so most such images turn white. Other 16-bit samples keep their high byte.
    /// - CMYK becomes RGB without a profile, as white minus ink. A CMYK JPEG is taken for inverted, as Adobe writes it.
    /// - Of an animated GIF or WebP the first frame is used; of a TIFF the first page.
    /// - A file that ends early is quarantined. Damage inside a JPEG is tolerated; what cannot be decoded is grey.
    pub(super) preprocess: RawPreprocess,
    /// Size and compression of chunks, the files in which results are stored.
    pub(super) chunks: RawChunks,
    /// The frozen backbone, or published features in its place. Without this section the pixel chunks are the product.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<RawModel>,
    /// Kind of head that is trained on the features.
    pub(super) head: RawHead,
    /// The frozen text encoder, for `head.kind = "text"` or `"paired"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<RawText>,
    /// Training of the head. Without this section the run ends with the feature chunks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) train: Option<RawTrain>,
    /// Ranking of captions for the test images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) predict: Option<RawPredict>,
    /// Captions that a captioning model writes, for the command `caption`; `run` ignores this section.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) caption: Option<RawCaption>,
}

/// `[run]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRun {
    /// Directory for everything durable that the run writes: a path or an `s3://` URL. New, empty, or that of an earlier start.
    /// `~` and variables are not expanded. Required.
    pub(super) dir: String,
    /// Seed of the head's initial weights, the training order and the validation split.
    pub(super) seed: u64,
}

impl Default for RawRun {
    fn default() -> Self {
        Self { dir: String::new(), seed: 42 }
    }
}
