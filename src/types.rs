//! Settings and values that several modules share, each defined once.
//!
//! The module imports nothing of this crate. A configuration key, a fingerprint and the code that acts on a setting all
//! use the same type, so that no mapping between two copies can go wrong. A module that gives a setting its meaning adds
//! the methods itself: `catalog` for [`MatchRule`], `decode` for [`Resample`] and [`Alpha`], `model` for [`Pool`].

mod hub;
mod memory;
mod part;
mod validation;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use hub::HubName;
pub use memory::AvailableMemory;
pub use part::Part;
pub use validation::ValidationSplit;

/// Defines an enum with one word per variant, as configuration files write it. The first variant is the default.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// Every variant, in the order of their definition.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            /// Returns the word that configuration files use.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(self.as_str())
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::ALL[0]
            }
        }
    };
}

words!(
    /// Origin of the classes.
    ClassSource {
        /// Each distinct string of the caption list is a class. Several can have one key.
        List = "list",
        /// Each distinct key of the training captions is a class, named by the first caption with that key.
        Train = "train",
    }
);
words!(
    /// Meaning of a sample for an image with several classes.
    TargetKind {
        /// Each pair of an image and one of its classes is a sample.
        Pairs = "pairs",
        /// The image is one sample, with equal shares of all its classes.
        Soft = "soft",
    }
);
words!(
    /// Rule by which a caption of a row is found among the classes.
    MatchRule {
        /// Equal without the white space at both ends (Unicode's `White_Space`, which includes no-break spaces).
        Trimmed = "trimmed",
        /// Equal byte for byte.
        Exact = "exact",
        /// Equal after trimming, under Unicode's canonical caseless matching.
        Casefold = "casefold",
        /// Equal page titles: the text before the first ` [SEP] `, trimmed; the whole caption where there is none.
        Title = "title",
    }
);
words!(
    /// Resampling filter, with the names of Pillow.
    Resample {
        /// Triangle of radius 1, widened when shrinking.
        Bilinear = "bilinear",
        /// The pixel under the centre of the output pixel.
        Nearest = "nearest",
        /// Keys' cubic with a = -0.5 (Catmull-Rom).
        Bicubic = "bicubic",
        /// Windowed sinc of radius 3.
        Lanczos = "lanczos",
        /// Mean of the pixels under the output pixel.
        Box = "box",
        /// Windowed sinc of radius 1.
        Hamming = "hamming",
    }
);
words!(
    /// Treatment of transparent pixels.
    Alpha {
        /// Composites on white, as a reader sees the image: Pillow's `alpha_composite` of `convert("RGBA")`.
        White = "white",
        /// Ignores the alpha channel, which uncovers hidden colours: Pillow's `convert("RGB")`.
        Drop = "drop",
    }
);
words!(
    /// Format of the files that hold images.
    ImageFormat {
        /// Recognised by the name and the first bytes of the first file.
        Auto = "auto",
        /// Tab-separated rows of URL and base64.
        Tsv = "tsv",
        /// Parquet with the bytes of the image files in a column.
        Parquet = "parquet",
        /// One JSON object per line, with base64 in a key.
        Jsonl = "jsonl",
        /// Tar archives in the layout of the `webdataset` library.
        WebDataset = "webdataset",
        /// Folder of image files.
        Folder = "folder",
    }
);
words!(
    /// Format of the files that hold captions.
    PairsFormat {
        /// Recognised by the name and the first bytes of the first file.
        Auto = "auto",
        /// Tab-separated rows with a header.
        Tsv = "tsv",
        /// Comma-separated rows with a header.
        Csv = "csv",
        /// Parquet with captions in a column.
        Parquet = "parquet",
        /// One JSON object per line.
        Jsonl = "jsonl",
        /// Tar archives in the layout of the `webdataset` library.
        WebDataset = "webdataset",
        /// Folder of image files.
        Folder = "folder",
    }
);
words!(
    /// Origin of the captions of a folder of image files.
    FolderCaptions {
        /// The first of the other ones that the folder has.
        Auto = "auto",
        /// Files `metadata.csv`, `.tsv`, `.jsonl` or `.parquet` with a column of file names.
        Metadata = "metadata",
        /// Files `NAME.txt` beside the images.
        Text = "text",
        /// Names of the folders that the images are in.
        Folders = "folders",
    }
);
words!(
    /// Compression of pixel chunks.
    Compression {
        /// No compression: pixels hardly compress.
        None = "none",
        /// LZ4.
        Lz4 = "lz4",
        /// Zstandard, level 1.
        Zstd = "zstd",
    }
);
words!(
    /// Floating-point format of features and vectors.
    Precision {
        /// bfloat16.
        Bf16 = "bf16",
        /// IEEE single precision.
        F32 = "f32",
    }
);
words!(
    /// Tokens of the hidden state that make the feature.
    Pool {
        /// Input of the family's classifier in transformers.
        Default = "default",
        /// The CLS token: `hidden_size` values.
        Cls = "cls",
        /// The CLS token, then the mean of the patch tokens: 2 · `hidden_size` values.
        ClsMean = "cls+mean",
        /// The mean of the patch tokens: `hidden_size` values.
        Mean = "mean",
        /// The checkpoint's own mapping to the space of its text tower: attention pooling or a projection.
        #[serde(alias = "map")]
        Head = "head",
    }
);
words!(
    /// Method by which a head is trained.
    HeadMethod {
        /// Stochastic gradient descent.
        Sgd = "sgd",
        /// Canonical correlation, in closed form.
        Cca = "cca",
        /// Ridge regression, in closed form.
        Ridge = "ridge",
        /// Canonical correlation for few images, stochastic gradient descent for many.
        Auto = "auto",
    }
);
words!(
    /// Weights of the members of an ensemble.
    MemberWeights {
        /// All have the same.
        Equal = "equal",
        /// Chosen on held-out images.
        HeldOut = "held-out",
    }
);
words!(
    /// Origin of the features.
    FeatureOrigin {
        /// The checkpoint computes them from pixels.
        Checkpoint = "checkpoint",
        /// The image files hold them, as text.
        Published = "published",
    }
);
words!(
    /// Kind of the trained head.
    HeadKind {
        /// Linear classifier with one output per class.
        Classes = "classes",
        /// Projection into the space of a text encoder.
        Text = "text",
        /// The checkpoint's own pair of towers, without training.
        Paired = "paired",
    }
);
words!(
    /// Optimiser.
    Optimizer {
        /// Stochastic gradient descent.
        Sgd = "sgd",
        /// Adam with decoupled weight decay.
        AdamW = "adamw",
    }
);
words!(
    /// Resampling of training pairs.
    Balance {
        /// Each pair comes once an epoch.
        None = "none",
        /// Pairs are repeated or left out so that languages have equal shares.
        Language = "language",
    }
);
words!(
    /// Hubness correction: the value subtracted from captions that are close to every image.
    Correction {
        /// No correction.
        None = "none",
        /// Logarithm of the caption's summed odds over all images (a softmax over images).
        Softmax = "softmax",
        /// Logarithm of the caption's summed odds, where the odds of each image add up to one too (Sinkhorn's algorithm).
        Sinkhorn = "sinkhorn",
        /// Mean similarity to the ten closest images (cross-domain similarity local scaling).
        Csls = "csls",
        /// The best on held-out images.
        Auto = "auto",
    }
);
words!(
    /// Shape of the learning rate after the warm-up.
    ScheduleKind {
        /// Falls linearly to 0 at the last step.
        Linear = "linear",
        /// Falls along half a cosine to 0 at the last step.
        Cosine = "cosine",
        /// Stays at the peak.
        Constant = "constant",
    }
);
words!(
    /// Checkpoint that predicts.
    Pick {
        /// The newest.
        Last = "last",
        /// The best by validation NDCG@5.
        Best = "best",
    }
);
words!(
    /// Kernels that compute the features of images on a GPU.
    KernelChoice {
        /// This program's own where they cover the model, else burn's.
        Auto = "auto",
        /// Those of burn.
        Burn = "burn",
    }
);
words!(
    /// Device that runs the model.
    DeviceKind {
        /// The best available.
        Auto = "auto",
        /// The CPU.
        Cpu = "cpu",
        /// An NVIDIA GPU.
        Cuda = "cuda",
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_variant_is_the_default() {
        assert_eq!(MatchRule::default(), MatchRule::Trimmed);
        assert_eq!(Resample::default(), Resample::Bilinear);
        assert_eq!(Precision::default().as_str(), "bf16");
    }

    #[test]
    fn serialised_names_are_the_words() {
        for pool in Pool::ALL {
            assert_eq!(serde_json::to_value(pool).unwrap(), pool.as_str());
        }
        assert_eq!(serde_json::from_str::<ScheduleKind>("\"constant\"").unwrap(), ScheduleKind::Constant);
    }
}
