//! Picks the values of a few columns out of one JSON object, without a tree of the rest.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Upper bound on the values of one column in an object. A published image has at most a few hundred captions.
const MAX_VALUES: usize = 1 << 16;

/// Values of one column in an object: one for a plain value, and one for each element of a list. Null is `None`.
pub(super) type Values<'a> = Vec<Option<Cow<'a, str>>>;

/// Columns to pick, as paths.
#[derive(Debug, Clone, Default)]
pub(super) struct JsonColumns(Vec<Vec<String>>);

impl JsonColumns {
    /// Splits names such as `a.b` into paths.
    pub(super) fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(|name| name.split('.').map(ToOwned::to_owned).collect()).collect())
    }

    /// Picks the values of each column, in the order of the names. A column that the object lacks has none.
    ///
    /// # Errors
    /// When the text is not a JSON object, or a column has too many values.
    pub(super) fn pick<'a>(&self, text: &'a [u8]) -> Result<Vec<Values<'a>>, String> {
        let mut picked: Vec<Values<'a>> = vec![Vec::new(); self.0.len()];
        let paths: Vec<(usize, &[String])> =
            self.0.iter().enumerate().map(|(column, path)| (column, path.as_slice())).collect();
        let mut parser = serde_json::Deserializer::from_slice(text);
        let pick = Pick { paths: &paths, picked: &mut picked, top: true };
        pick.deserialize(&mut parser).and_then(|()| parser.end()).map_err(|error| error.to_string())?;
        Ok(picked)
    }
}

/// Reads one value, at which some paths begin or end.
struct Pick<'p, 'o, 'a> {
    /// Column and the rest of its path.
    paths: &'p [(usize, &'p [String])],
    picked: &'o mut Vec<Values<'a>>,
    /// True if the value is the whole text, which must be an object.
    top: bool,
}

impl<'a> Pick<'_, '_, 'a> {
    /// Adds a plain value to the columns whose path ends here.
    fn add<E: de::Error>(self, value: Option<&Cow<'a, str>>) -> Result<(), E> {
        if self.top {
            return Err(E::custom("it is not a JSON object"));
        }
        for (column, _) in self.paths.iter().filter(|(_, rest)| rest.is_empty()) {
            let values = &mut self.picked[*column];
            if values.len() == MAX_VALUES {
                return Err(E::custom(format_args!("a column has more than {MAX_VALUES} values")));
            }
            values.push(value.cloned());
        }
        Ok(())
    }
}

impl<'a> DeserializeSeed<'a> for Pick<'_, '_, 'a> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Pick<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'a str) -> Result<(), E> {
        self.add(Some(&Cow::Borrowed(text)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        self.add(Some(&Cow::Owned(text.to_owned())))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.add(Some(&Cow::Owned(value.to_string())))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.add(Some(&Cow::Owned(value.to_string())))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.add(Some(&Cow::Owned(value.to_string())))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.add(Some(&Cow::Owned(value.to_string())))
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.add(None)
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut list: S) -> Result<(), S::Error> {
        if self.top {
            return Err(de::Error::custom("it is not a JSON object"));
        }
        let Self { paths, picked, .. } = self;
        let mut before: Vec<usize> = paths.iter().map(|(column, _)| picked[*column].len()).collect();
        while list.next_element_seed(Pick { paths, picked, top: false })?.is_some() {
            // Each element has one value for each column, so that columns of one list of objects stay side by side.
            for ((column, _), before) in paths.iter().zip(&mut before) {
                let values = &mut picked[*column];
                if values.len() == *before {
                    if values.len() == MAX_VALUES {
                        return Err(de::Error::custom(format_args!("a column has more than {MAX_VALUES} values")));
                    }
                    values.push(None);
                }
                *before = values.len();
            }
        }
        Ok(())
    }

    fn visit_map<M: MapAccess<'a>>(self, mut object: M) -> Result<(), M::Error> {
        let Self { paths, picked, .. } = self;
        while let Some(key) = object.next_key::<Cow<'a, str>>()? {
            let inside: Vec<(usize, &[String])> = paths
                .iter()
                .filter_map(|(column, rest)| rest.split_first().map(|(first, rest)| (*column, first, rest)))
                .filter(|(_, first, _)| **first == *key)
                .map(|(column, _, rest)| (column, rest))
                .collect();
            if inside.is_empty() {
                object.next_value::<IgnoredAny>()?;
            } else {
                object.next_value_seed(Pick { paths: &inside, picked: &mut *picked, top: false })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(names: &[&str], text: &str) -> Result<Vec<Vec<Option<String>>>, String> {
        let picked = JsonColumns::new(names.iter().copied()).pick(text.as_bytes())?;
        Ok(picked
            .into_iter()
            .map(|values| values.into_iter().map(|value| value.map(Cow::into_owned)).collect())
            .collect())
    }

    fn texts(values: &[&str]) -> Vec<Option<String>> {
        values.iter().map(|value| (*value != "-").then(|| (*value).to_owned())).collect()
    }

    #[test]
    fn lists_of_objects_and_objects_of_lists_give_the_same() {
        let names = ["w.language", "w.caption"];
        let expected = vec![texts(&["en", "de", "-"]), texts(&["a", "-", "c"])];
        let of_objects =
            r#"{"w": [{"language":"en","caption":"a"},{"language":"de"},{"caption":"c","language":null}]}"#;
        assert_eq!(pick(&names, of_objects).unwrap(), expected);
        let of_lists = r#"{"w": {"caption": ["a", null, "c"], "language": ["en", "de", null]}}"#;
        assert_eq!(pick(&names, of_lists).unwrap(), expected);
    }

    #[test]
    fn plain_values_become_text() {
        let text = r#"{"a": "x\/y", "b": 7, "c": true, "d": null, "e": {"f": [1, [2]]}, "skipped": [{"a": 1}]}"#;
        let expected = vec![texts(&["x/y"]), texts(&["7"]), texts(&["true"]), texts(&["-"]), vec![]];
        assert_eq!(pick(&["a", "b", "c", "d", "g"], text).unwrap(), expected);
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in ["", "{", "[1]", "7", "\"x\"", "{} {}", "{\"a\": \"\u{1}\"}", "{\"a\": 1,}"] {
            assert!(pick(&["a"], text).is_err(), "{text}");
        }
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(pick(&["a"], &deep).unwrap_err().contains("recursion"));
        let many = format!("{{\"a\": [{}1]}}", "1,".repeat(MAX_VALUES));
        assert!(pick(&["a"], &many).unwrap_err().contains("more than"));
    }
}
