//! Rows of the train files: the 18 columns of a caption, and the rows that break careless readers.

use super::concepts::LANGUAGES;
use super::plan::Mention;
use super::plan::TrainRow;
use super::rng::SampleRng;
use super::urls::Urls;

/// The header of the train files.
pub(super) const COLUMNS: [&str; 18] = [
    "language",
    "page_url",
    "image_url",
    "page_title",
    "section_title",
    "hierarchical_section_title",
    "caption_reference_description",
    "caption_attribution_description",
    "caption_alt_text_description",
    "mime_type",
    "original_height",
    "original_width",
    "is_main_image",
    "attribution_passes_lang_id",
    "page_changed_recently",
    "context_page_description",
    "context_section_description",
    "caption_title_and_reference_description",
];

/// The row for `mention`; what the join does not need is filled as the published rows are.
pub(super) fn train_row(mention: &Mention, rng: &mut SampleRng) -> TrainRow {
    let (language, title, text) = match &mention.caption {
        Some(caption) => (caption.language, caption.title.as_str(), caption.text.as_str()),
        None => (LANGUAGES[mention.concept % LANGUAGES.len()].code, "", ""),
    };
    let mut target = mention.caption.as_ref().map(super::concepts::Caption::target).unwrap_or_default();
    if mention.trailing_space {
        target.push_str(" \u{a0}");
    }
    row(&Filled { language, url: &mention.url, title, text, target: &target }, rng)
}

struct Filled<'a> {
    language: &'a str,
    url: &'a str,
    title: &'a str,
    text: &'a str,
    target: &'a str,
}

fn row(filled: &Filled<'_>, rng: &mut SampleRng) -> TrainRow {
    let Filled { language, url, title, text, target } = filled;
    let section = if rng.percent(30) { "Gallery" } else { "" };
    let context = match rng.below(5) {
        0 => format!("{title} is a \"figure\".\nIt has sides.\n\n{text}"),
        1 => format!("{title}\tand\tother figures"),
        2 => "\"".to_owned(),
        3 => String::new(),
        _ => format!("On {title}."),
    };
    let height = 400 + rng.below(4000);
    let width = 400 + rng.below(4000);
    // Numbers are not always numbers.
    let height = if rng.percent(1) { format!("{height}px") } else { height.to_string() };
    let width = if rng.percent(1) { "1.2e".to_owned() } else { width.to_string() };
    let boolean = |value: bool| if value { "true" } else { "false" }.to_owned();
    let ending = url.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let mime = match ending.as_str() {
        "png" => "image/png",
        "svg" => "image/svg+xml",
        "tif" => "image/tiff",
        _ => "image/jpeg",
    };
    let page = title.replace(' ', "_");
    let attribution = if rng.percent(20) { "English: Own work\nDeutsch: Eigenes Werk" } else { "" };
    let fields: [String; 18] = [
        (*language).to_owned(),
        format!("https://{language}.wikipedia.org/wiki/{page}"),
        (*url).to_owned(),
        (*title).to_owned(),
        section.to_owned(),
        if section.is_empty() { (*title).to_owned() } else { format!("{title} / {section}") },
        (*text).to_owned(),
        attribution.to_owned(),
        if rng.percent(10) { (*text).to_owned() } else { String::new() },
        mime.to_owned(),
        height,
        width,
        boolean(rng.percent(40)),
        boolean(rng.percent(60)),
        boolean(rng.percent(98)),
        context,
        if section.is_empty() { String::new() } else { format!("See \"{title}\".") },
        (*target).to_owned(),
    ];
    fields.into_iter().map(String::into_bytes).collect()
}

/// Rows that no image of the shards belongs to: without a URL, with too few or too many fields, not UTF-8, and one field
/// longer than any usual buffer.
pub(super) fn odd_rows(urls: &mut Urls, rng: &mut SampleRng) -> Vec<TrainRow> {
    let mut rows = Vec::new();
    let long_url = urls.next(rng);
    let mut filled = |url: &str| {
        row(&Filled { language: "en", url, title: "Odd", text: "Odd row", target: "Odd [SEP] Odd row" }, rng)
    };
    for _ in 0..10 {
        rows.push(filled(""));
    }
    for kept in [3, 17, 1] {
        let mut few = filled("https://upload.wikimedia.org/wikipedia/commons/few.jpg");
        few.truncate(kept);
        rows.push(few);
    }
    for added in [1, 2, 7] {
        let mut many = filled("https://upload.wikimedia.org/wikipedia/commons/many.jpg");
        many.extend(std::iter::repeat_n(b"more".to_vec(), added));
        rows.push(many);
    }
    let mut broken = filled("https://upload.wikimedia.org/wikipedia/commons/broken.jpg");
    broken[15] = b"caf\xe9 in Latin-1, \xff\xfe".to_vec();
    rows.push(broken);
    let mut long = filled(&long_url);
    long[15] = "A long \"context\"\twith a tab.\n".repeat(7_000).into_bytes();
    rows.push(long);
    rows
}
