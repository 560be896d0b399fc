//! Rules for equality of captions.

use std::borrow::Cow;

use caseless::Caseless;
use unicode_normalization::UnicodeNormalization;

use crate::types::MatchRule;

/// Separator between page title and caption.
const SEPARATOR: &str = " [SEP] ";
/// Separator at the end of a string whose caption is empty and trimmed.
const OPEN_SEPARATOR: &str = " [SEP]";

impl MatchRule {
    /// Returns the key that is compared instead of `caption`. Equal captions have equal keys; an empty key equals nothing.
    ///
    /// The key of [`MatchRule::Casefold`] is NFC(toCasefold(NFD(X))) with full folding. This is the canonical caseless
    /// match of the Unicode Standard, section 3.13, definition D145, which compares NFD instead of NFC. Folding NFD
    /// rather than NFC matters only for the Greek iota subscript.
    pub fn key(self, caption: &str) -> Cow<'_, str> {
        match self {
            Self::Exact => Cow::Borrowed(caption),
            Self::Trimmed => Cow::Borrowed(caption.trim()),
            Self::Casefold => casefold(caption.trim()),
            Self::Title => Cow::Borrowed(title(caption)),
        }
    }
}

fn casefold(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(text.to_ascii_lowercase())
        } else {
            Cow::Borrowed(text)
        };
    }
    Cow::Owned(text.nfd().default_case_fold().nfc().collect())
}

fn title(caption: &str) -> &str {
    let title = match caption.split_once(SEPARATOR) {
        Some((title, _)) => title,
        // The trailing space may have been trimmed away.
        None => caption.strip_suffix(OPEN_SEPARATOR).unwrap_or(caption),
    };
    title.trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    #[test]
    fn trimming_removes_every_unicode_space() {
        assert_eq!(MatchRule::Trimmed.key("\u{a0}\u{2003}\u{3000} A\u{a0}b \r\n\t\u{2028}"), "A\u{a0}b");
        assert_eq!(MatchRule::Exact.key(" a "), " a ");
    }

    #[test]
    fn case_folding_is_full_and_ignores_composition() {
        let equal = |left, right| {
            assert_eq!(MatchRule::Casefold.key(left), MatchRule::Casefold.key(right), "{left} {right}");
        };
        equal("Straße", "STRASSE");
        equal("ΌΣΟΣ", "όσος");
        equal("Caf\u{e9}", "CAFE\u{301}");
        equal("ﬁne", "FINE");
        equal("\u{1fc3}", "\u{397}\u{399}");
        equal("İ", "i\u{307}");
        equal(" ABC ", "abc");
        assert_ne!(MatchRule::Casefold.key("ı"), MatchRule::Casefold.key("i"));
        assert!(matches!(MatchRule::Casefold.key("plain ascii"), Cow::Borrowed(_)));
    }

    #[test]
    fn title_ends_at_the_first_separator() {
        let title = |caption| MatchRule::Title.key(caption).into_owned();
        assert_eq!(title("Mont Blanc [SEP] seen from [SEP] the south"), "Mont Blanc");
        assert_eq!(title("Mont Blanc [SEP] "), "Mont Blanc");
        assert_eq!(title("Mont Blanc [SEP]"), "Mont Blanc");
        assert_eq!(title(" Mont Blanc\u{a0}"), "Mont Blanc");
        assert_eq!(title(" [SEP] without a title"), "");
        assert_eq!(title("a[SEP]b"), "a[SEP]b");
    }

    proptest! {
        #[test]
        fn keys_are_idempotent(caption in "\\PC{0,12}|[ A-Za-z\u{e9}\u{301}\u{345}ßΣςıİ\u{a0}]{0,12}") {
            for rule in [MatchRule::Exact, MatchRule::Trimmed, MatchRule::Casefold] {
                let key = rule.key(&caption).into_owned();
                prop_assert_eq!(&*rule.key(&key), &*key);
            }
        }

        #[test]
        fn ascii_fast_path_equals_full_folding(caption in "[ -~]{0,20}") {
            let slow: String = caption.trim().nfd().default_case_fold().nfc().collect();
            prop_assert_eq!(&*MatchRule::Casefold.key(&caption), &*slow);
        }
    }
}
