//! Expands the names of a configuration before they are looked up: brace ranges and `@` lists of names.
//!
//! | written | means |
//! | --- | --- |
//! | `part-{00..19}.gz` | twenty names, `part-00.gz` to `part-19.gz`, all of which must exist |
//! | `https://host/{a,b}.gz` | two names; elsewhere `{a,b}` is a glob |
//! | `@files.txt` | the names in the lines of a file, relative to its folder |
//!
//! A web server cannot be listed, so its files are named by ranges or by a list.

use super::client::{redact, remote_scheme};
use super::{Store, StoreError};

/// Prefix of the name of a list.
const LIST: char = '@';
/// Upper bound on the names that one entry expands to.
const MAX_NAMES: usize = 200_000;
/// Upper bound on the size of a list.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// Expands one entry of a configuration.
///
/// # Errors
/// When a range or a list is malformed, or a list cannot be read.
pub(super) async fn expand(store: &Store, entry: &str) -> Result<Vec<String>, StoreError> {
    let bad = |reason: String| StoreError::BadPattern { pattern: redact(entry).to_owned(), reason };
    let Some(list) = entry.strip_prefix(LIST) else { return expand_braces(entry).map_err(bad) };
    let content = Box::pin(store.read(list, MAX_LIST_BYTES)).await?;
    let text = std::str::from_utf8(&content).map_err(|_| bad("it is not UTF-8 text".to_owned()))?;
    let mut names = Vec::new();
    for (line, text) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let bad_line = |reason: String| bad(format!("line {}: {reason}", line + 1));
        let name = resolve(list, text).map_err(bad_line)?;
        names.extend(expand_braces(&name).map_err(bad_line)?);
        if names.len() > MAX_NAMES {
            return Err(bad(format!("it names more than {MAX_NAMES} files")));
        }
    }
    if names.is_empty() { Err(bad("it names no file".to_owned())) } else { Ok(names) }
}

/// Resolves a line of a list against the list's own name. A list on a server can name remote files only.
fn resolve(list: &str, line: &str) -> Result<String, String> {
    if line.starts_with(LIST) {
        return Err(format!("`{line}` is another list, which a list cannot name"));
    }
    if remote_scheme(line).is_some() {
        return Ok(line.to_owned());
    }
    let Some(scheme) = remote_scheme(list) else {
        let path = line.strip_prefix("file://").unwrap_or(line);
        let folder = std::path::Path::new(list.strip_prefix("file://").unwrap_or(list)).parent();
        let joined = folder.unwrap_or_else(|| std::path::Path::new("")).join(path);
        return Ok(joined.to_string_lossy().into_owned());
    };
    if line.starts_with('/') || line.starts_with("file:") {
        return Err(format!("`{line}` is a local path; a list on a server names URLs, or files beside it"));
    }
    let base = if scheme.starts_with("http") { list.split('?').next().unwrap_or(list) } else { list };
    let folder = base.rfind('/').map_or(base, |slash| &base[..=slash]);
    Ok(format!("{folder}{line}"))
}

/// Expands the ranges of a name and, in a web URL, its alternatives.
fn expand_braces(name: &str) -> Result<Vec<String>, String> {
    let web = name.starts_with("http://") || name.starts_with("https://");
    // The query of a URL is not part of its name.
    let (mut rest, query) = if web { name.split_at(name.find('?').unwrap_or(name.len())) } else { (name, "") };
    let mut names = vec![String::new()];
    let append = |names: &mut Vec<String>, text: &str| names.iter_mut().for_each(|name| name.push_str(text));
    while let Some((before, after)) = rest.split_once('{') {
        append(&mut names, before);
        let choices = match after.split_once('}') {
            Some((inner, behind)) => parse_choices(inner, web)?.map(|choices| (choices, behind)),
            None => None,
        };
        let Some((choices, behind)) = choices else {
            append(&mut names, "{");
            rest = after;
            continue;
        };
        if names.len().saturating_mul(choices.len()) > MAX_NAMES {
            return Err(format!("it expands to more than {MAX_NAMES} names"));
        }
        names = names.iter().flat_map(|name| choices.iter().map(move |choice| format!("{name}{choice}"))).collect();
        rest = behind;
    }
    append(&mut names, rest);
    append(&mut names, query);
    Ok(names)
}

/// Parses the text between two braces; `None` if it is neither a range nor, in a web URL, a list of alternatives.
fn parse_choices(inner: &str, web: bool) -> Result<Option<Vec<String>>, String> {
    if let Some((first, last)) = inner.split_once("..") {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits(first) && digits(last) {
            return expand_range(first, last).map(Some);
        }
    }
    if web && inner.contains('{') {
        return Err("braces inside braces are not supported".to_owned());
    }
    Ok((web && inner.contains(',')).then(|| inner.split(',').map(ToOwned::to_owned).collect()))
}

/// Expands `first..last`; numbers are padded where either end starts with a zero.
fn expand_range(first: &str, last: &str) -> Result<Vec<String>, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is too large for a range"));
    let (from, to) = (number(first)?, number(last)?);
    if from > to {
        return Err(format!("the range `{{{first}..{last}}}` runs backwards"));
    }
    if to - from >= MAX_NAMES as u64 {
        return Err(format!("it expands to more than {MAX_NAMES} names"));
    }
    let padded = [first, last].iter().any(|text| text.len() > 1 && text.starts_with('0'));
    let width = if padded { first.len().max(last.len()) } else { 0 };
    Ok((from..=to).map(|number| format!("{number:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_expand_in_order_with_their_padding() {
        assert_eq!(expand_braces("a-{08..11}.gz").unwrap(), ["a-08.gz", "a-09.gz", "a-10.gz", "a-11.gz"]);
        assert_eq!(expand_braces("{9..10}").unwrap(), ["9", "10"]);
        assert_eq!(
            expand_braces("s3://b/{0..1}/{00..01}").unwrap().join(" "),
            "s3://b/0/00 s3://b/0/01 s3://b/1/00 s3://b/1/01"
        );
        assert_eq!(
            expand_braces("https://h/{0..1}.gz?a={2..3}").unwrap(),
            ["https://h/0.gz?a={2..3}", "https://h/1.gz?a={2..3}"]
        );
        for (range, reason) in
            [("{3..1}", "backwards"), ("{0..300000}", "more than"), ("{0..99999999999999999999}", "too large")]
        {
            assert!(expand_braces(range).unwrap_err().contains(reason), "{range}");
        }
        assert!(expand_braces("{0..999}-{0..999}").unwrap_err().contains("more than"));
    }

    #[test]
    fn other_braces_are_globs_except_in_web_urls() {
        for name in ["{a,b}.tsv", "x{", "{1..b}", "{..}", "{}", "[{]"] {
            assert_eq!(expand_braces(name).unwrap(), [name]);
        }
        assert_eq!(expand_braces("https://h/{a,b}.gz").unwrap(), ["https://h/a.gz", "https://h/b.gz"]);
        assert!(expand_braces("https://h/{a,{b,c}}").is_err());
    }

    #[test]
    fn lines_of_a_list_are_relative_to_its_folder() {
        for (list, line, name) in [
            ("lists/files.txt", "a.gz", "lists/a.gz"),
            ("files.txt", "a.gz", "a.gz"),
            ("lists/files.txt", "/data/a.gz", "/data/a.gz"),
            ("lists/files.txt", "https://h/a.gz", "https://h/a.gz"),
            ("https://h/d/files.txt?sig=1", "sub/a.gz", "https://h/d/sub/a.gz"),
            ("s3://b/d/files.txt", "s3://c/a.gz", "s3://c/a.gz"),
            ("s3://b/d/files.txt", "a b.gz", "s3://b/d/a b.gz"),
        ] {
            assert_eq!(resolve(list, line).unwrap(), name);
        }
        for line in ["/etc/passwd", "file:///etc/passwd", "@other.txt"] {
            resolve("https://h/files.txt", line).unwrap_err();
        }
    }

    #[tokio::test]
    async fn list_skips_comments_and_blank_lines() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("files.txt");
        let expand = async |text: &[u8]| {
            std::fs::write(&list, text).unwrap();
            expand(&Store::default(), &format!("@{}", list.display())).await
        };
        let names = expand(b"\xef\xbb\xbf# all\r\n\r\na-{0..1}.gz\r\n  b.gz  \n").await.unwrap();
        let names: Vec<&str> = names.iter().map(|name| name.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["a-0.gz", "a-1.gz", "b.gz"]);
        for (text, reason) in [(&b"# none\n"[..], "no file"), (b"\xff\xfe", "UTF-8"), (b"a\n{2..1}\n", "line 2")] {
            let error = expand(text).await.unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("files.txt"), "{error}");
        }
    }
}
