//! Values that a key can have: closed sets of words, byte sizes, durations.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Defines a closed set of words; the first is the default.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// The word as the file writes it.
            pub fn as_str(self) -> &'static str {
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
                [$(Self::$variant),+][0]
            }
        }
    };
}

words!(
    /// Where the classes come from.
    Classes {
        /// The distinct strings of the caption list.
        List = "list",
        /// The distinct captions of the pairs.
        Train = "train",
    }
);
words!(
    /// What a sample is where an image has several classes.
    Targets {
        /// Each pair of an image and one of its classes.
        Pairs = "pairs",
        /// The image, with equal shares of all its classes.
        Soft = "soft",
    }
);
words!(
    /// When two captions mean the same.
    MatchRule {
        /// White space at both ends aside.
        Trimmed = "trimmed",
        /// Byte for byte.
        Exact = "exact",
        /// NFC, trimmed, case folded.
        Casefold = "casefold",
        /// The part before ` [SEP] `.
        Title = "title",
    }
);
words!(
    /// How pixels are interpolated.
    Resample {
        /// Triangle filter.
        Bilinear = "bilinear",
        /// Nearest neighbour.
        Nearest = "nearest",
        /// Cubic with a = -0.5.
        Bicubic = "bicubic",
        /// Lanczos with three lobes.
        Lanczos = "lanczos",
    }
);
words!(
    /// What becomes of transparency.
    Alpha {
        /// Composited on white.
        White = "white",
        /// Ignored.
        Drop = "drop",
    }
);
words!(
    /// Compression of pixel chunks.
    Compression {
        /// As they are: pixels hardly compress.
        None = "none",
        /// LZ4.
        Lz4 = "lz4",
        /// Zstandard, level 1.
        Zstd = "zstd",
    }
);
words!(
    /// Floating-point format of the features.
    Precision {
        /// bfloat16.
        Bf16 = "bf16",
        /// IEEE single.
        F32 = "f32",
    }
);
words!(
    /// Which tokens become the feature.
    Pool {
        /// What the family's classifier sees.
        Default = "default",
        /// The CLS token.
        Cls = "cls",
        /// CLS followed by the mean of the patch tokens.
        ClsMean = "cls+mean",
    }
);
words!(
    /// What is trained.
    HeadKind {
        /// A linear layer with one output for each class.
        Classes = "classes",
        /// A map into the space of a text encoder.
        Text = "text",
    }
);
words!(
    /// Optimiser.
    Optimizer {
        /// Stochastic gradient descent.
        Sgd = "sgd",
        /// Adam with weight decay apart from the gradient.
        AdamW = "adamw",
    }
);
words!(
    /// How often a pair of an image and a caption is trained on.
    Balance {
        /// Once an epoch.
        None = "none",
        /// By its language, so that languages have equal shares.
        Language = "language",
    }
);
words!(
    /// What is taken off captions that are close to every image.
    Correction {
        /// Nothing.
        None = "none",
        /// The logarithm of their summed odds over all images: a softmax over images.
        Softmax = "softmax",
        /// Their mean similarity to the ten closest images (cross-domain similarity local scaling).
        Csls = "csls",
    }
);
words!(
    /// Shape of the learning rate after the warm-up.
    ScheduleKind {
        /// Straight down to zero.
        Linear = "linear",
        /// Half a cosine down to zero.
        Cosine = "cosine",
        /// The peak, to the end.
        Constant = "constant",
    }
);
words!(
    /// Which checkpoint predicts.
    Pick {
        /// The newest.
        Last = "last",
        /// The best by validation NDCG@5.
        Best = "best",
    }
);
words!(
    /// Where the model runs.
    DeviceKind {
        /// The best that is there.
        Auto = "auto",
        /// The processor.
        Cpu = "cpu",
        /// An NVIDIA GPU.
        Cuda = "cuda",
    }
);

/// A number of bytes, written `"32 MiB"` or as a plain integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Bytes {
    /// So many mebibytes.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }
}

impl fmt::Display for Bytes {
    /// Writes the value exactly, in the largest binary unit that divides it.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0 {
            0 => (0, "B"),
            n if n.trailing_zeros() >= 30 => (30, "GiB"),
            n if n.trailing_zeros() >= 20 => (20, "MiB"),
            n if n.trailing_zeros() >= 10 => (10, "KiB"),
            _ => (0, "B"),
        };
        write!(out, "{} {unit}", self.0 >> shift)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a size such as \"512 MiB\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                bytesize::ByteSize::from_str(text)
                    .map(|size| Bytes(size.as_u64()))
                    .map_err(|_| E::custom(format!("`{text}` is not a size such as \"512 MiB\"")))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Bytes, E> {
                u64::try_from(value).map(Bytes).map_err(|_| E::custom(format!("`{value}` is negative")))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Bytes, E> {
                Ok(Bytes(value))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A length of time, written `"90 s"` or `"5 min"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Span {
    /// So many seconds.
    pub const fn seconds(count: u64) -> Self {
        Self(Duration::from_secs(count))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(out)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map(Self)
            .map_err(|_| de::Error::custom(format!("`{text}` is not a duration such as \"90 s\"")))
    }
}

/// One number, or a list of numbers to try one beside the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Numbers(pub Vec<f64>);

impl From<f64> for Numbers {
    fn from(number: f64) -> Self {
        Self(vec![number])
    }
}

impl Serialize for Numbers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.serialize_f64(*one),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Numbers;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a number or a list of numbers")
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Numbers, E> {
                Ok(number.into())
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Numbers, E> {
                Ok((number as f64).into())
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Numbers, A::Error> {
                let mut numbers = Vec::new();
                while let Some(number) = list.next_element()? {
                    numbers.push(number);
                }
                Ok(Numbers(numbers))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Holder {
        size: Bytes,
    }

    proptest! {
        #[test]
        fn a_size_survives_being_written_and_read(size in 0u64..=1 << 50) {
            let holder = Holder { size: Bytes(size) };
            let text = toml::to_string(&holder).unwrap();
            prop_assert_eq!(toml::from_str::<Holder>(&text).unwrap(), holder);
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [("\"32 MiB\"", 32 << 20), ("\"1GiB\"", 1 << 30), ("4096", 4096), ("\"2 KB\"", 2000)] {
            let holder: Holder = toml::from_str(&format!("size = {text}")).unwrap();
            assert_eq!(holder.size, Bytes(bytes), "{text}");
        }
        assert!(toml::from_str::<Holder>("size = -1").is_err());
        assert!(toml::from_str::<Holder>("size = \"many\"").is_err());
    }

    #[test]
    fn the_first_word_is_the_default() {
        assert_eq!(MatchRule::default(), MatchRule::Trimmed);
        assert_eq!(Precision::default().as_str(), "bf16");
    }
}
