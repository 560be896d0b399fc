//! Reasons why an image cannot be used: a sentence for people, and a stable name for counts.

use thiserror::Error;

use super::sniff::Format;

/// Reason why an image cannot be used, as the short name in quarantine files and reports.
///
/// The names are part of the files that a run writes: names may be added, but none may change.
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
    /// Decoding would allocate more memory than the limit.
    TooMuchMemory,
    /// An `SVG` drawing.
    UnsupportedSvg,
    /// An `HTML` page, typically a server's error message.
    UnsupportedHtml,
    /// Any other unsupported format, or an unsupported variant of a supported one.
    UnsupportedFormat,
    /// The data ends early.
    Truncated,
    /// The data contradicts its format.
    Corrupt,
    /// The caller's buffer has the wrong length, which is an error of the program and not of the image.
    OutputSize,
}

impl Reason {
    /// Returns the stable name, in `snake_case`.
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

/// Error for an image that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// There are no bytes, or only white space where base64 should be.
    #[error("there is no image data")]
    MissingData,
    /// The text is not base64.
    #[error("the text is not base64: {detail}")]
    InvalidBase64 {
        /// Description of the error.
        detail: &'static str,
    },
    /// The encoded image is over [`ImageSpec::max_encoded_bytes`](super::ImageSpec::max_encoded_bytes).
    #[error("{bytes} encoded bytes are over the limit of {limit} (`preprocess.max_encoded`)")]
    TooLarge {
        /// Length of the image.
        bytes: u64,
        /// Upper bound on the length.
        limit: u64,
    },
    /// The header announces more pixels than [`ImageSpec::max_pixels`](super::ImageSpec::max_pixels).
    #[error("{width_px} × {height_px} pixels is over the limit of {limit} (`preprocess.max_pixels`)")]
    TooManyPixels {
        /// Width in the header.
        width_px: u64,
        /// Height in the header.
        height_px: u64,
        /// Upper bound on the pixels.
        limit: u64,
    },
    /// Decoding would allocate more than [`ImageSpec::decode_bytes`](super::ImageSpec::decode_bytes).
    #[error(
        "decoding {width_px} × {height_px} pixels of `{format}` needs {bytes} bytes, over the limit of {limit} that follows from `preprocess.max_pixels`"
    )]
    TooMuchMemory {
        /// The format.
        format: Format,
        /// Width in the header.
        width_px: u64,
        /// Height in the header.
        height_px: u64,
        /// Upper bound on the bytes that it would allocate.
        bytes: u64,
        /// Limit on these bytes.
        limit: u64,
    },
    /// An `SVG` drawing.
    #[error("`SVG` is a drawing, not a raster image")]
    UnsupportedSvg,
    /// An `HTML` page.
    #[error("found an `HTML` page in place of an image")]
    UnsupportedHtml,
    /// A recognised but unsupported format.
    #[error("image format `{name}` is not supported")]
    UnsupportedFormat {
        /// Name of the format.
        name: &'static str,
    },
    /// An unsupported variant of a supported format.
    #[error("this variant of `{format}` is not supported: {detail}")]
    UnsupportedVariant {
        /// The format.
        format: Format,
        /// Description of the variant.
        detail: String,
    },
    /// The data ends before the image is complete.
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
        /// The decoder's message.
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
    /// Returns the stable name of the reason.
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

    /// Creates an error from a decoder's message.
    pub(super) fn corrupt(format: Format, detail: impl std::fmt::Display) -> Self {
        Self::Corrupt { format, detail: format_shortened(&detail) }
    }

    /// Creates an error for an unsupported variant of a format.
    pub(super) fn variant(format: Format, detail: impl std::fmt::Display) -> Self {
        Self::UnsupportedVariant { format, detail: format_shortened(&detail) }
    }
}

/// Formats a text up to the length of a quarantine row. The rest is never formatted, because a decoder may list thousands
/// of values.
fn format_shortened(detail: &impl std::fmt::Display) -> String {
    use std::fmt::Write as _;

    struct Limited(String);

    impl std::fmt::Write for Limited {
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

    let mut text = Limited(String::new());
    // The only error is that the limit is reached.
    write!(text, "{detail}").ok();
    text.0.trim_end().to_owned()
}
