//! `examples.html`: the held-out images that a head ranks best and worst, as the view "Pictures" shows them.

use std::fmt::Write as _;

use base64_simd::STANDARD;

use super::{escape, style};

/// An image with its captions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example<'a> {
    /// URL of the image.
    pub url: &'a str,
    /// A small JPEG, if there is one.
    pub thumbnail: Option<&'a [u8]>,
    /// Mean gain of its right captions.
    pub ndcg5: f64,
    /// Best captions, best first.
    pub ranked: Vec<ExampleCaption<'a>>,
    /// Right captions that are shown.
    pub right: Vec<ExampleCaption<'a>>,
    /// Number of right captions, shown or not.
    pub rights: usize,
}

/// A caption of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ExampleCaption<'a> {
    /// The caption.
    pub text: &'a str,
    /// Its language; empty if it is not known.
    pub language: &'a str,
    /// True if it is a right caption of the image.
    pub is_right: bool,
}

/// Head of a file: nothing but its own styles and pictures is used.
const HEAD: &str = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
    <meta name=\"color-scheme\" content=\"light dark\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n";

/// Returns the page. `notes` stand below the title; each section has a title and its images.
pub fn examples_page(title: &str, notes: &[String], sections: &[(&str, Vec<Example<'_>>)]) -> String {
    let title = escape(title);
    let mut page = format!(
        "{HEAD}<title>{title}</title>\n<style>\n{}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n",
        style()
    );
    for note in notes {
        writeln!(page, "<p class=\"note\">{}</p>", escape(note)).ok();
    }
    for (name, examples) in sections {
        writeln!(page, "<h2>{}</h2>\n<div class=\"cards\">", escape(name)).ok();
        for example in examples {
            page.push_str(&card(example));
        }
        page.push_str("</div>\n");
    }
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

/// Renders an image.
fn card(example: &Example<'_>) -> String {
    let picture = match example.thumbnail {
        Some(bytes) => format!(
            "<span class=\"picture thumbnail\"><img alt=\"\" src=\"data:image/jpeg;base64,{}\"></span>",
            STANDARD.encode_to_string(bytes)
        ),
        None => "<span class=\"picture missing\">no thumbnail</span>".to_owned(),
    };
    let ranked: String = example.ranked.iter().map(|one| caption(one, one.is_right)).collect();
    let mut right: String = example.right.iter().map(|one| caption(one, false)).collect();
    if example.rights > example.right.len() {
        write!(right, "<li>and {} more</li>", example.rights - example.right.len()).ok();
    }
    format!(
        "<article class=\"card\"><div class=\"side\">{picture}<p>NDCG@5 {:.2}</p></div><div class=\"captions\"><h3 class=\"minor\">Ranked captions</h3><ol>{ranked}</ol>\
         <h3 class=\"minor\">Right captions</h3><ul>{right}</ul><p class=\"address\">{}</p></div></article>\n",
        example.ndcg5,
        escape(example.url)
    )
}

/// Renders a caption; `marked` adds the mark of a right one.
fn caption(one: &ExampleCaption<'_>, marked: bool) -> String {
    let (class, mark) = if marked { (" class=\"right\"", "<strong>✓ right</strong>") } else { ("", "") };
    let (mut language, mut attribute) = (String::new(), String::new());
    if !one.language.is_empty() {
        language = format!("<span class=\"language\">{}</span>", escape(one.language));
        attribute = format!(" lang=\"{}\"", escape(one.language));
    }
    let text = if one.text.is_empty() { "(empty)" } else { one.text };
    format!(
        "<li{class}><span class=\"text\" dir=\"auto\"{attribute}>{}</span><span class=\"facts\">{language}{mark}</span></li>",
        escape(text)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_escapes_captions_and_has_no_script() {
        let hostile = ExampleCaption { text: "<script>alert(\"1\")</script>", language: "\"><b>", is_right: true };
        let example = Example {
            url: "https://x/<a>.jpg",
            thumbnail: Some(&[1, 2, 3]),
            ndcg5: 0.5,
            ranked: vec![hostile, ExampleCaption::default()],
            right: vec![hostile],
            rights: 9,
        };
        let page =
            examples_page("A & B", &["<i>".to_owned()], &[("Best", vec![example.clone()]), ("Worst", Vec::new())]);
        assert!(page.contains("src=\"data:image/jpeg;base64,AQID\"") && page.contains("https://x/&lt;a&gt;.jpg"));
        assert!(
            page.contains("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;")
                && page.contains("lang=\"&quot;&gt;&lt;b&gt;\"")
        );
        assert!(
            !page.contains("<script")
                && !page.contains("<i>")
                && page.contains("A &amp; B")
                && page.contains("and 8 more")
        );
        assert_eq!(page.matches("✓ right").count(), 1);
        let without = examples_page("", &[], &[("", vec![Example { thumbnail: None, ..example }])]);
        assert!(without.contains("no thumbnail"));
    }
}
