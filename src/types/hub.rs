//! `hf:ORG/NAME[@REVISION]`: a repository of the Hugging Face hub, by name. A data set's files are named
//! `hf://datasets/ORG/NAME[@REVISION]/PATH`; `hf_hub` splits such URLs.
//!
//! An accepted name becomes a part of URLs and of paths in the cache, so a name that could lead elsewhere is refused. The
//! rules are those of `huggingface_hub` for names, and git's for references.

/// Prefix of a hub repository's name.
const PREFIX: &str = "hf:";
/// Revision where none is named.
const DEFAULT_REVISION: &str = "main";
/// Upper bound on the characters of an organisation or a name.
const MAX_CHARS: usize = 96;

/// A repository on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `ORG/NAME`; for a few old repositories `NAME` alone.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl HubName {
    /// Parses a name; `None` for a text without the prefix, which is a path.
    ///
    /// # Errors
    /// Says why it cannot be a name, in one clause.
    pub fn parse(text: &str) -> Option<Result<Self, String>> {
        let rest = text.strip_prefix(PREFIX)?;
        let (repo, revision) = rest.split_once('@').map_or((rest, None), |(repo, revision)| (repo, Some(revision)));
        let revision = revision.unwrap_or(DEFAULT_REVISION);
        Some(match Self::check(repo, revision) {
            Ok(()) => Ok(Self { repo: repo.to_owned(), revision: revision.to_owned() }),
            Err(why) => Err(format!("`{text}` {why}; write `hf:ORG/NAME` or `hf:ORG/NAME@REVISION`")),
        })
    }

    /// Checks that both names are well formed.
    ///
    /// # Errors
    /// Says what is wrong, as a predicate.
    pub(crate) fn check(repo: &str, revision: &str) -> Result<(), &'static str> {
        bad_repo(repo).or_else(|| bad_revision(revision)).map_or(Ok(()), Err)
    }
}

fn bad_repo(repo: &str) -> Option<&'static str> {
    let mut parts = repo.split('/');
    let (first, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    if third.is_some() {
        return Some("has more parts than an organisation and a repository");
    }
    for part in [Some(first), second].into_iter().flatten() {
        let plain = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
        if part.is_empty() {
            return Some("lacks the name of a repository");
        }
        if part.len() > MAX_CHARS
            || !part.chars().all(plain)
            || part.starts_with(['-', '.'])
            || part.ends_with(['-', '.'])
        {
            return Some(
                "is not a valid hub name: use at most 96 letters, digits, `-`, `_` and `.`, with `-` and `.` only inside",
            );
        }
    }
    (repo.contains("--") || repo.contains("..") || repo.strip_suffix(".git").is_some())
        .then_some("is not a valid hub name: it must not contain `--` or `..`, or end in `.git`")
}

/// Applies those rules of `git check-ref-format` that keep a name from leading elsewhere.
fn bad_revision(revision: &str) -> Option<&'static str> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || "~^:?*[\\".contains(c);
    let bad_part = |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with('.');
    (revision.contains(odd) || revision.contains("..") || revision.contains("@{") || revision.split('/').any(bad_part))
        .then_some("has no valid branch, tag or commit after `@`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn organisation_and_revision_are_optional() {
        for (text, repo, revision) in [
            ("hf:google/vit-base-patch16-224-in21k", "google/vit-base-patch16-224-in21k", "main"),
            ("hf:gpt2", "gpt2", "main"),
            ("hf:a_b/C.d-e@v1.0", "a_b/C.d-e", "v1.0"),
            ("hf:a/b@refs/pr/1", "a/b", "refs/pr/1"),
            ("hf:a/b@3b5a4bd2f9f1", "a/b", "3b5a4bd2f9f1"),
        ] {
            let name = HubName::parse(text).unwrap().unwrap();
            assert_eq!((name.repo.as_str(), name.revision.as_str()), (repo, revision));
        }
        assert_eq!(HubName::parse("models/vit"), None);
    }

    #[test]
    fn names_that_could_lead_elsewhere_are_refused() {
        for text in [
            "hf:",
            "hf:/",
            "hf:a/",
            "hf:/b",
            "hf:a/b/c",
            "hf://a/b",
            "hf:../b",
            "hf:a/..",
            "hf:.a/b",
            "hf:a/b-",
            "hf:a b",
            "hf:a/b?x",
            "hf:a/b.git",
            "hf:a--b",
            "hf:a/b@",
            "hf:a/b@..",
            "hf:a/b@../../x",
            "hf:a/b@/etc",
            "hf:a/b@x/",
            "hf:a/b@x y",
            "hf:a/b@.x",
            "hf:a/b@x//y",
            "hf:a/b@a\\b",
            "hf:ä/b",
        ] {
            let why = HubName::parse(text).unwrap().unwrap_err();
            assert!(why.contains(text) && why.contains("hf:ORG/NAME"), "{why}");
        }
    }
}
