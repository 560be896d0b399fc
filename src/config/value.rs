//! Values with a notation of their own: byte sizes, durations, numbers to sweep.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes, written `"32 MiB"` or as a plain integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Returns `count` mebibytes.
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

/// Limit of the memory in flight: a number of bytes, or `"auto"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum MemoryLimit {
    /// Follows the memory that the container or the machine has.
    #[default]
    Auto,
    /// Number of bytes.
    Bytes(Bytes),
}

impl Serialize for MemoryLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Bytes(bytes) => bytes.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for MemoryLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Text(String),
            Number(i64),
        }
        match Written::deserialize(deserializer)
            .map_err(|_| de::Error::custom("expected \"auto\" or a size such as \"512 MiB\""))?
        {
            Written::Text(text) if text == "auto" => Ok(Self::Auto),
            Written::Text(text) => bytesize::ByteSize::from_str(&text)
                .map(|size| Self::Bytes(Bytes(size.as_u64())))
                .map_err(|_| de::Error::custom(format!("`{text}` is neither \"auto\" nor a size such as \"512 MiB\""))),
            Written::Number(number) => u64::try_from(number)
                .map(|bytes| Self::Bytes(Bytes(bytes)))
                .map_err(|_| de::Error::custom(format!("`{number}` is negative"))),
        }
    }
}

/// A duration, written `"90 s"` or `"5 min"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

impl Span {
    /// Returns `count` seconds.
    pub(super) const fn seconds(count: u64) -> Self {
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

/// A number of things, 1 by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Count(pub(super) u32);

impl Default for Count {
    fn default() -> Self {
        Self(1)
    }
}

/// One number, or a list of numbers for a sweep.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Numbers(pub(super) Vec<f64>);

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

/// Temperature of a contrastive loss: a number, or `"learned"`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) enum Temperature {
    /// Learned, from the initial value of the head.
    #[default]
    Learned,
    /// Fixed.
    Fixed(f64),
}

impl Serialize for Temperature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Learned => serializer.serialize_str("learned"),
            Self::Fixed(number) => serializer.serialize_f64(*number),
        }
    }
}

impl<'de> Deserialize<'de> for Temperature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Text(String),
            Number(f64),
        }
        match Written::deserialize(deserializer).map_err(|_| de::Error::custom("expected \"learned\" or a number"))? {
            Written::Text(text) if text == "learned" => Ok(Self::Learned),
            Written::Text(text) => Err(de::Error::custom(format!("`{text}` is neither \"learned\" nor a number"))),
            Written::Number(number) => Ok(Self::Fixed(number)),
        }
    }
}

/// One transformer block, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layers(pub(super) Vec<i32>);

impl Serialize for Layers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.serialize_i32(*one),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Layers;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("the number of a block or a list of numbers")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Layers, E> {
                i32::try_from(number)
                    .map(|layer| Layers(vec![layer]))
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &"the number of a block"))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Layers, A::Error> {
                let mut layers = Vec::new();
                while let Some(layer) = list.next_element()? {
                    layers.push(layer);
                }
                Ok(Layers(layers))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// Folder of event files, written `true`, `false`, or as the name of a folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum EventFolder {
    /// No event files.
    #[default]
    Off,
    /// In the run directory.
    RunDirectory,
    /// In a folder of the run's name, in this folder.
    At(String),
}

impl Serialize for EventFolder {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::RunDirectory => serializer.serialize_bool(true),
            Self::At(folder) => serializer.serialize_str(folder),
        }
    }
}

impl<'de> Deserialize<'de> for EventFolder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = EventFolder;
            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("true, false or the name of a folder")
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<EventFolder, E> {
                Ok(if value { EventFolder::RunDirectory } else { EventFolder::Off })
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<EventFolder, E> {
                if text.is_empty() {
                    Err(E::custom("the name of the folder is empty"))
                } else {
                    Ok(EventFolder::At(text.to_owned()))
                }
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
        fn size_round_trips_through_text(size in 0u64..=1 << 50) {
            let holder = Holder { size: Bytes(size) };
            let text = toml::to_string(&holder).unwrap();
            prop_assert_eq!(toml::from_str::<Holder>(&text).unwrap(), holder);
        }
    }

    #[test]
    fn single_layer_is_written_as_a_number() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Model {
            layer: Layers,
        }
        for (text, layers) in [("layer = -1\n", vec![-1]), ("layer = [8, 10, 12]\n", vec![8, 10, 12])] {
            let model: Model = toml::from_str(text).unwrap();
            assert_eq!(model.layer.0, layers);
            assert_eq!(toml::to_string(&model).unwrap(), text);
        }
        for wrong in ["layer = 1.5", "layer = 99999999999", "layer = ['a']"] {
            assert!(toml::from_str::<Model>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn temperature_is_a_number_or_learned() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Head {
            temperature: Temperature,
        }
        for (text, value) in
            [("'learned'", Temperature::Learned), ("0.125", Temperature::Fixed(0.125)), ("1", Temperature::Fixed(1.0))]
        {
            let head: Head = toml::from_str(&format!("temperature = {text}")).unwrap();
            assert_eq!(head.temperature, value);
            assert_eq!(toml::from_str::<Head>(&toml::to_string(&head).unwrap()).unwrap(), head);
        }
        assert!(toml::from_str::<Head>("temperature = 'hot'").is_err());
    }

    #[test]
    fn usual_notations_of_sizes_are_read() {
        for (text, bytes) in [("\"32 MiB\"", 32 << 20), ("\"1GiB\"", 1 << 30), ("4096", 4096), ("\"2 KB\"", 2000)] {
            let holder: Holder = toml::from_str(&format!("size = {text}")).unwrap();
            assert_eq!(holder.size, Bytes(bytes), "{text}");
        }
        assert!(toml::from_str::<Holder>("size = -1").is_err());
        assert!(toml::from_str::<Holder>("size = \"many\"").is_err());
    }
}
