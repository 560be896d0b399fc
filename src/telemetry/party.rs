//! [`Party`]: limiting party of a stage.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Limiting party of a stage: a busy part of the stage, or an outside party that a part waits for.
///
/// Serialised as its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Party {
    /// A part of the stage, by its name.
    Part(Cow<'static, str>),
    /// The store that holds the inputs.
    Store,
    /// The run directory.
    RunDirectory,
    /// The tokenizer of the text encoder.
    Tokenizer,
    /// The reader of feature chunks.
    Features,
}

impl Party {
    /// All parties outside the stage.
    const OUTSIDE: [Self; 4] = [Self::Store, Self::RunDirectory, Self::Tokenizer, Self::Features];

    /// Returns the name used in `status.json` and `report.json`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Part(name) => name,
            Self::Store => "the store",
            Self::RunDirectory => "the run directory",
            Self::Tokenizer => "the tokenizer",
            Self::Features => "the features",
        }
    }

    /// Whether the party is outside the stage, so that the stage waited for it.
    pub fn is_outside(&self) -> bool {
        !matches!(self, Self::Part(_))
    }
}

impl std::fmt::Display for Party {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(self.as_str())
    }
}

impl From<String> for Party {
    fn from(name: String) -> Self {
        let outside = Self::OUTSIDE.into_iter().find(|party| party.as_str() == name);
        outside.unwrap_or(Self::Part(Cow::Owned(name)))
    }
}

impl From<Party> for String {
    fn from(party: Party) -> Self {
        party.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_a_round_trip() {
        for party in Party::OUTSIDE.into_iter().chain([Party::Part(Cow::Borrowed("decode"))]) {
            let text = serde_json::to_string(&party).unwrap();
            assert_eq!(text, format!("\"{party}\""));
            assert_eq!(serde_json::from_str::<Party>(&text).unwrap(), party);
            assert_eq!(party.is_outside(), party.as_str().starts_with("the "));
        }
    }
}
