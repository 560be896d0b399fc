//! Why an image cannot be used: a sentence for people, and a stable name to count by.

use thiserror::Error;

use super::sniff::Format;

/// Why an image cannot be used, as the short name that quarantine files and reports count by.
///
/// The names are part of the files that a run writes: one may be added, none changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// There are no bytes.
    MissingData,
    /// The text is not base64.
    InvalidBase64,
    /// The encoded image is over the limit in bytes.
    TooLarge,
    /// The header announces more pixels than the limit.
    TooManyPixels,
    /// Decoding would take more memory than an image of the most pixels may.
    TooMuchMemory,
    /// An `SVG` drawing.
    UnsupportedSvg,
    /// An `HTML` page, typically a server's error message.
    UnsupportedHtml,
    /// Any other format, or a variant of a known one, that is not read.
    UnsupportedFormat,
    /// The data ends early.
    Truncated,
    /// The data contradicts its format.
    Corrupt,
    /// The caller's buffer has the wrong length: a mistake of the program, never of the image.
    OutputSize,
}

impl Reason {
    /// The stable name, in `snake_case`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MissingData => "missing_data",
            Self::InvalidBase64 => "invalid_base64",
            Self::TooLarge => "too_large",
            Self::TooManyPixels => "too_many_pixels",
            Self::TooMuchMemory => "too_much_memory",
            Self::UnsupportedSvg => "unsupported_svg",
            Self::UnsupportedHtml => "unsupported_html",
            Self::UnsupportedFormat => "unsupported_format",
            Self::Truncated => "truncated",
            Self::Corrupt => "corrupt",
            Self::OutputSize => "output_size",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An image that cannot be used, with the values that say why.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// There are no bytes, or only white space where base64 should be.
    #[error("there is no image data")]
    MissingData,
    /// The text is not base64.
    #[error("the text is not base64: {detail}")]
    InvalidBase64 {
        /// What is wrong with it.
        detail: &'static str,
    },
    /// The encoded image is over [`Spec::max_encoded_bytes`](super::Spec::max_encoded_bytes).
    #[error("{bytes} encoded bytes are over the limit of {limit} (`preprocess.max_encoded`)")]
    TooLarge {
        /// Length found.
        bytes: u64,
        /// Length allowed.
        limit: u64,
    },
    /// The header announces more pixels than [`Spec::max_pixels`](super::Spec::max_pixels).
    #[error("{width_px} × {height_px} pixels is over the limit of {limit} (`preprocess.max_pixels`)")]
    TooManyPixels {
        /// Width in the header.
        width_px: u64,
        /// Height in the header.
        height_px: u64,
        /// Pixels allowed.
        limit: u64,
    },
    /// Decoding would take more than [`Spec::decode_bytes`](super::Spec::decode_bytes).
    #[error(
        "decoding {width_px} × {height_px} pixels of `{format}` takes {bytes} bytes, over the limit of {limit} that follows from `preprocess.max_pixels`"
    )]
    TooMuchMemory {
        /// The format.
        format: Format,
        /// Width in the header.
        width_px: u64,
        /// Height in the header.
        height_px: u64,
        /// Bytes it takes at most.
        bytes: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// An `SVG` drawing.
    #[error("`SVG` is a drawing, not a raster image")]
    UnsupportedSvg,
    /// An `HTML` page.
    #[error("an `HTML` page stands where the image should be")]
    UnsupportedHtml,
    /// A recognised format that is not read.
    #[error("`{name}` is not a format that is read here")]
    UnsupportedFormat {
        /// What the bytes are, as far as they tell.
        name: &'static str,
    },
    /// A variant of a format that is otherwise read.
    #[error("this variant of `{format}` is not read: {detail}")]
    UnsupportedVariant {
        /// The format.
        format: Format,
        /// Which part of it.
        detail: String,
    },
    /// The data ends before the image does.
    #[error("the `{format}` data ends early")]
    Truncated {
        /// The format.
        format: Format,
    },
    /// The data contradicts its format.
    #[error("the `{format}` data is corrupt: {detail}")]
    Corrupt {
        /// The format.
        format: Format,
        /// What the decoder says.
        detail: String,
    },
    /// The buffer for the pixels has the wrong length.
    #[error("the pixel buffer has {found} bytes, but the image needs exactly {expected}")]
    OutputSize {
        /// Bytes needed.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
}

impl DecodeError {
    /// The short stable name of what went wrong.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::MissingData => Reason::MissingData,
            Self::InvalidBase64 { .. } => Reason::InvalidBase64,
            Self::TooLarge { .. } => Reason::TooLarge,
            Self::TooManyPixels { .. } => Reason::TooManyPixels,
            Self::TooMuchMemory { .. } => Reason::TooMuchMemory,
            Self::UnsupportedSvg => Reason::UnsupportedSvg,
            Self::UnsupportedHtml => Reason::UnsupportedHtml,
            Self::UnsupportedFormat { .. } | Self::UnsupportedVariant { .. } => Reason::UnsupportedFormat,
            Self::Truncated { .. } => Reason::Truncated,
            Self::Corrupt { .. } => Reason::Corrupt,
            Self::OutputSize { .. } => Reason::OutputSize,
        }
    }

    /// A decoder's complaint.
    pub(super) fn corrupt(format: Format, detail: impl std::fmt::Display) -> Self {
        Self::Corrupt { format, detail: shortened(&detail) }
    }

    /// A variant that a decoder does not read, in its words.
    pub(super) fn variant(format: Format, detail: impl std::fmt::Display) -> Self {
        Self::UnsupportedVariant { format, detail: shortened(&detail) }
    }
}

/// A text cut so that a quarantine row stays short. What is cut off is never made: a decoder may list thousands of values.
fn shortened(detail: &impl std::fmt::Display) -> String {
    use std::fmt::Write as _;

    struct Head(String);

    impl std::fmt::Write for Head {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            for character in text.chars() {
                if self.0.len() >= 200 {
                    return Err(std::fmt::Error);
                }
                self.0.push(character);
            }
            Ok(())
        }
    }

    let mut head = Head(String::new());
    // Its only error is that it is full.
    write!(head, "{detail}").ok();
    head.0.trim_end().to_owned()
}
