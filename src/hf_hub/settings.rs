//! Endpoint, cache, token and offline mode from the environment variables of `huggingface_hub`, read as it reads them.
//!
//! | variable | sets | default |
//! | --- | --- | --- |
//! | `HF_ENDPOINT` | the hub or a mirror | `https://huggingface.co` |
//! | `HF_HUB_CACHE`, else `HF_HOME`, else `XDG_CACHE_HOME` | the cache | `~/.cache/huggingface/hub` |
//! | `HF_TOKEN`, else the file `HF_TOKEN_PATH`, else `token` in `HF_HOME` | the token | none |
//! | `HF_HUB_DISABLE_IMPLICIT_TOKEN` | ignores stored tokens | off |
//! | `HF_HUB_OFFLINE`, else `TRANSFORMERS_OFFLINE` | uses the cache only | off |
//!
//! The older names `HUGGINGFACE_HUB_CACHE` and `HUGGING_FACE_HUB_TOKEN` count too. An empty variable counts as absent.

use std::path::{Path, PathBuf};

use reqwest::header::HeaderValue;

use crate::objects::StoreError;

/// Endpoint without a setting.
const ENDPOINT: &str = "https://huggingface.co";

/// Settings of the hub.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// Without a final `/`.
    pub(super) endpoint: String,
    pub(super) cache: PathBuf,
    pub(super) offline: bool,
    token: Token,
}

/// Source of the token.
#[derive(Clone)]
enum Token {
    None,
    Value(String),
    File(PathBuf),
}

impl std::fmt::Debug for Token {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Token")
    }
}

impl Settings {
    /// Reads the environment of this process.
    pub(super) fn from_env() -> Self {
        Self::read(|name| std::env::var(name).ok(), std::env::home_dir())
    }

    fn read(get: impl Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Self {
        let home = home.unwrap_or_default();
        let value = |names: &[&str]| names.iter().find_map(|name| get(name).filter(|value| !value.trim().is_empty()));
        let truth = |names: &[&str]| value(names).is_some_and(|value| is_true(&value));
        let path = |names: &[&str]| value(names).map(|value| expand(&value, &get, &home));
        let root = path(&["HF_HOME"])
            .unwrap_or_else(|| path(&["XDG_CACHE_HOME"]).unwrap_or_else(|| home.join(".cache")).join("huggingface"));
        let token = if truth(&["HF_HUB_DISABLE_IMPLICIT_TOKEN"]) {
            Token::None
        } else if let Some(token) = value(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]) {
            Token::Value(token)
        } else {
            Token::File(path(&["HF_TOKEN_PATH"]).unwrap_or_else(|| root.join("token")))
        };
        Self {
            endpoint: value(&["HF_ENDPOINT"])
                .unwrap_or_else(|| ENDPOINT.to_owned())
                .trim()
                .trim_end_matches('/')
                .to_owned(),
            cache: path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).unwrap_or_else(|| root.join("hub")),
            offline: truth(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]),
            token,
        }
    }

    /// Returns the `Authorization` header; its debug output hides the token.
    ///
    /// # Errors
    /// When the token cannot be read or is malformed.
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>, StoreError> {
        let text = match &self.token {
            Token::None => return Ok(None),
            Token::Value(token) => token.clone(),
            Token::File(path) => match std::fs::read_to_string(path) {
                Ok(token) => token,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(StoreError::io(path, "read", error)),
            },
        };
        let token: String = text.chars().filter(|c| !['\r', '\n'].contains(c)).collect();
        let token = token.trim();
        if token.is_empty() {
            return Ok(None);
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| StoreError::BadUrl {
            url: "HF_TOKEN".to_owned(),
            reason: "it contains characters that a token cannot have".to_owned(),
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].iter().any(|word| value.trim().eq_ignore_ascii_case(word))
}

/// Expands `~`, `$NAME` and `${NAME}` in a path; unset variables stay as they are.
fn expand(text: &str, get: &impl Fn(&str) -> Option<String>, home: &Path) -> PathBuf {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let (name, behind) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some(found) => found,
            None => after.split_at(after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len())),
        };
        if let Some(value) = get(name).filter(|_| !name.is_empty()) {
            out.push_str(&value);
            rest = behind;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    match out.strip_prefix('~') {
        Some("") => home.to_owned(),
        Some(inside) if inside.starts_with('/') => home.join(inside.trim_start_matches('/')),
        _ => out.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        let get = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Settings::read(get, Some("/home/me".into()))
    }

    #[test]
    fn cache_path_matches_huggingface_hub() {
        for (variables, cache) in [
            (&[][..], "/home/me/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")], "/h/hub"),
            (&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")], "/c"),
            (&[("HF_HOME", "/h"), ("HUGGINGFACE_HUB_CACHE", "/c")], "/c"),
            (&[("HF_HOME", "")], "/home/me/.cache/huggingface/hub"),
            (&[("HF_HOME", "~/hf")], "/home/me/hf/hub"),
            (&[("HF_HOME", "$DISK/a${B}c/$NONE"), ("DISK", "/d"), ("B", "b")], "/d/abc/$NONE/hub"),
        ] {
            assert_eq!(settings(variables).cache, Path::new(cache), "{variables:?}");
        }
    }

    #[test]
    fn offline_accepts_four_words() {
        for word in ["1", "on", "YES", "True"] {
            assert!(settings(&[("HF_HUB_OFFLINE", word)]).offline, "{word}");
        }
        for word in ["0", "", "off", "2"] {
            assert!(!settings(&[("HF_HUB_OFFLINE", word)]).offline, "{word}");
        }
        assert!(settings(&[("TRANSFORMERS_OFFLINE", "1")]).offline);
    }

    #[test]
    fn token_comes_from_environment_then_file_and_is_hidden() {
        let bearer = |settings: &Settings| settings.authorization().unwrap().map(|value| value.as_bytes().to_vec());
        let here = settings(&[("HF_TOKEN", " hf_secret\n"), ("HF_TOKEN_PATH", "/nowhere")]);
        assert_eq!(bearer(&here).unwrap(), b"Bearer hf_secret");
        assert!(!format!("{here:?} {:?}", here.authorization()).contains("secret"));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "hf_stored\n").unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(bearer(&settings(&[("HF_HOME", home)])).unwrap(), b"Bearer hf_stored");
        assert_eq!(bearer(&settings(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")])), None);
        assert_eq!(bearer(&settings(&[("HF_HOME", "/nowhere")])), None);
        let error = settings(&[("HF_TOKEN", "hf_se\u{1}cret")]).authorization().unwrap_err().to_string();
        assert!(error.contains("HF_TOKEN") && !error.contains("cret"), "{error}");
    }

    #[test]
    fn endpoint_has_no_final_slash() {
        assert_eq!(settings(&[]).endpoint, "https://huggingface.co");
        assert_eq!(settings(&[("HF_ENDPOINT", "https://mirror/api/hf/")]).endpoint, "https://mirror/api/hf");
    }
}
