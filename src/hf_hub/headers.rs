//! Parses the headers of the hub's answers.

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, LINK};

const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");

/// Size and hash of a file as the hub states them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileMetadata {
    /// SHA-256 of a large file, git's hash of a small one; names its blob.
    pub(super) etag: String,
    pub(super) size: u64,
}

/// Parses the headers of an answer to HEAD.
pub(super) fn parse_metadata(headers: &HeaderMap, redirects: bool, commit: &str) -> Result<FileMetadata, &'static str> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if text(REPO_COMMIT).is_some_and(|other| other != commit) {
        return Err("it answers with another commit");
    }
    let etag = text(LINKED_ETAG).or_else(|| text(ETAG)).ok_or("it states no hash")?;
    let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    // The tag becomes a file name in the cache.
    let plain = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    if etag.is_empty() || etag.len() > 128 || etag.starts_with('.') || !etag.chars().all(plain) {
        return Err("it states no usable hash");
    }
    // An answer that redirects has a length of its own.
    let size = text(LINKED_SIZE).or_else(|| text(CONTENT_LENGTH).filter(|_| !redirects));
    let size = size.and_then(|size| size.parse().ok()).ok_or("it states no size")?;
    Ok(FileMetadata { etag: etag.to_owned(), size })
}

/// Returns the target of a header `Link: <URL>; rel="next"`.
pub(super) fn next_page(headers: &HeaderMap) -> Option<&str> {
    let links = headers.get(LINK)?.to_str().ok()?;
    let next = links.split(',').find(|link| link.split(';').any(|part| part.trim() == "rel=\"next\""))?;
    next.split(';').next()?.trim().strip_prefix('<')?.strip_suffix('>')
}

/// Returns the first byte of a header `Content-Range: bytes FIRST-LAST/SIZE`.
pub(super) fn range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn metadata_describes_the_file_not_the_answer() {
        let metadata = |list: &[(&'static str, &'static str)], redirects| {
            parse_metadata(&headers(list), redirects, COMMIT).map(|parsed| (parsed.etag, parsed.size))
        };
        let small = [("etag", "\"abc\""), ("content-length", "12"), ("x-repo-commit", COMMIT)];
        assert_eq!(metadata(&small, false), Ok(("abc".into(), 12)));
        assert_eq!(metadata(&[("etag", "W/\"abc\""), ("content-length", "12")], false), Ok(("abc".into(), 12)));
        let large = [
            ("etag", "\"of-the-redirect\""),
            ("x-linked-etag", "\"f00\""),
            ("content-length", "99"),
            ("x-linked-size", "5000000000"),
        ];
        assert_eq!(metadata(&large, true), Ok(("f00".into(), 5_000_000_000)));
        assert_eq!(metadata(&[("etag", "\"abc\""), ("content-length", "99")], true), Err("it states no size"));
        assert_eq!(metadata(&[("content-length", "12")], false), Err("it states no hash"));
        for etag in ["\"../../x\"", "\"\"", "\"a/b\"", "\".a\""] {
            let list = [("etag", etag), ("content-length", "1")];
            assert_eq!(parse_metadata(&headers(&list), false, COMMIT), Err("it states no usable hash"));
        }
        let other = [("etag", "\"abc\""), ("content-length", "12"), ("x-repo-commit", "f00")];
        assert_eq!(metadata(&other, false), Err("it answers with another commit"));
    }

    #[test]
    fn next_page_is_read_from_the_link_header() {
        let next = |link: &'static str| next_page(&headers(&[("link", link)])).map(ToOwned::to_owned);
        let link = r#"<https://hub/api/first>; rel="first", <https://hub/api?cursor=a%3D>; rel="next""#;
        assert_eq!(next(link).as_deref(), Some("https://hub/api?cursor=a%3D"));
        assert_eq!(next(r#"<https://hub/api>; rel="prev""#), None);
        assert_eq!(next("rel=\"next\""), None);
    }

    #[test]
    fn content_range_gives_its_start() {
        assert_eq!(range_start(&headers(&[("content-range", "bytes 100-199/200")])), Some(100));
        assert_eq!(range_start(&headers(&[("content-range", "items 1-2/3")])), None);
    }
}
