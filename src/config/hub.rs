//! `hf:ORG/NAME[@REVISION]`: a repository of the Hugging Face hub, by name.
//!
//! What is accepted here becomes a part of URLs and of paths in the cache, so nothing that could lead elsewhere is: the
//! rules are those of `huggingface_hub` for names and git's for references.

/// What names of hub repositories start with.
const PREFIX: &str = "hf:";
/// What is meant where no revision is named.
const DEFAULT_REVISION: &str = "main";
/// Longest organisation or name.
const LONGEST: usize = 96;

/// A repository on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `ORG/NAME`, or `NAME` alone for the few old ones.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl HubName {
    /// Reads a name; `None` where the text names no hub repository but a path.
    ///
    /// # Errors
    /// Why it cannot be one, as a clause.
    pub fn parse(text: &str) -> Option<Result<Self, String>> {
        let rest = text.strip_prefix(PREFIX)?;
        let (repo, revision) = rest.split_once('@').map_or((rest, None), |(repo, revision)| (repo, Some(revision)));
        let revision = revision.unwrap_or(DEFAULT_REVISION);
        let wrong = bad_repo(repo).or_else(|| bad_revision(revision));
        Some(match wrong {
            None => Ok(Self { repo: repo.to_owned(), revision: revision.to_owned() }),
            Some(why) => Err(format!("`{text}` {why}; write `hf:ORG/NAME` or `hf:ORG/NAME@REVISION`")),
        })
    }
}

fn bad_repo(repo: &str) -> Option<&'static str> {
    let mut parts = repo.split('/');
    let (first, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    if third.is_some() {
        return Some("names more than an organisation and a repository");
    }
    for part in [Some(first), second].into_iter().flatten() {
        let plain = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
        if part.is_empty() {
            return Some("names no repository");
        }
        if part.len() > LONGEST
            || !part.chars().all(plain)
            || part.starts_with(['-', '.'])
            || part.ends_with(['-', '.'])
        {
            return Some(
                "is no name on the hub: letters, digits, `-`, `_` and `.` make one, of at most 96, with `-` and `.` only inside",
            );
        }
    }
    (repo.contains("--") || repo.contains("..") || repo.strip_suffix(".git").is_some())
        .then_some("is no name on the hub: none has `--` or `..` in it or ends in `.git`")
}

/// git's own rules (`git check-ref-format`), as far as a name that breaks them could lead elsewhere.
fn bad_revision(revision: &str) -> Option<&'static str> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || "~^:?*[\\".contains(c);
    let bad_part = |part: &str| part.is_empty() || part.starts_with('.') || part.ends_with('.');
    (revision.contains(odd) || revision.contains("..") || revision.contains("@{") || revision.split('/').any(bad_part))
        .then_some("names no branch, tag or commit after `@`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_organisation_and_revision() {
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
    fn what_could_lead_elsewhere_is_refused() {
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
