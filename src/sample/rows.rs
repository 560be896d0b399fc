//! Rows of the train files: 18 columns per caption, and malformed rows.

use super::contents::TrainCaption;
use super::contents::TrainRow;
use super::rng::SampleRng;
use super::scenes::LANGUAGES;
use super::urls::UrlGenerator;

/// Header of the train files.
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

/// Returns the row for a caption. Columns that the join does not need are filled like those of published rows.
pub(super) fn train_row(caption: &TrainCaption, rng: &mut SampleRng) -> TrainRow {
    let (language, title, text) = match &caption.caption {
        Some(caption) => (caption.language, caption.title.as_str(), caption.text.as_str()),
        None => (LANGUAGES[caption.scene % LANGUAGES.len()].code, "", ""),
    };
    let mut target = caption.caption.as_ref().map(super::scenes::Caption::target).unwrap_or_default();
    if caption.trailing_space {
        target.push_str(" \u{a0}");
    }
    fill_row(&RowValues { language, url: &caption.url, title, text, target: &target }, rng)
}

struct RowValues<'a> {
    language: &'a str,
    url: &'a str,
    title: &'a str,
    text: &'a str,
    target: &'a str,
}

fn fill_row(values: &RowValues<'_>, rng: &mut SampleRng) -> TrainRow {
    let RowValues { language, url, title, text, target } = values;
    let section = if rng.chance_percent(30) { "Gallery" } else { "" };
    let context = match rng.below(5) {
        0 => format!("{title} is a \"figure\".\nIt has sides.\n\n{text}"),
        1 => format!("{title}\tand\tother figures"),
        2 => "\"".to_owned(),
        3 => String::new(),
        _ => format!("On {title}."),
    };
    let height = 400 + rng.below(4000);
    let width = 400 + rng.below(4000);
    // Some numeric columns are malformed.
    let height = if rng.chance_percent(1) { format!("{height}px") } else { height.to_string() };
    let width = if rng.chance_percent(1) { "1.2e".to_owned() } else { width.to_string() };
    let boolean = |value: bool| if value { "true" } else { "false" }.to_owned();
    let ending = url.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    let mime = match ending.as_str() {
        "png" => "image/png",
        "svg" => "image/svg+xml",
        "tif" => "image/tiff",
        _ => "image/jpeg",
    };
    let page = title.replace(' ', "_");
    let attribution = if rng.chance_percent(20) { "English: Own work\nDeutsch: Eigenes Werk" } else { "" };
    let fields: [String; 18] = [
        (*language).to_owned(),
        format!("https://{language}.wikipedia.org/wiki/{page}"),
        (*url).to_owned(),
        (*title).to_owned(),
        section.to_owned(),
        if section.is_empty() { (*title).to_owned() } else { format!("{title} / {section}") },
        (*text).to_owned(),
        attribution.to_owned(),
        if rng.chance_percent(10) { (*text).to_owned() } else { String::new() },
        mime.to_owned(),
        height,
        width,
        boolean(rng.chance_percent(40)),
        boolean(rng.chance_percent(60)),
        boolean(rng.chance_percent(98)),
        context,
        if section.is_empty() { String::new() } else { format!("See \"{title}\".") },
        (*target).to_owned(),
    ];
    fields.into_iter().map(String::into_bytes).collect()
}

/// Returns rows that match no image: without a URL, with too few or too many fields, not UTF-8, and with a field longer
/// than common buffers.
pub(super) fn malformed_rows(urls: &mut UrlGenerator, rng: &mut SampleRng) -> Vec<TrainRow> {
    let mut rows = Vec::new();
    let long_url = urls.next(rng);
    let mut values = |url: &str| {
        fill_row(&RowValues { language: "en", url, title: "Odd", text: "Odd row", target: "Odd [SEP] Odd row" }, rng)
    };
    for _ in 0..10 {
        rows.push(values(""));
    }
    for count in [3, 17, 1] {
        let mut few = values("https://upload.wikimedia.org/wikipedia/commons/few.jpg");
        few.truncate(count);
        rows.push(few);
    }
    for count in [1, 2, 7] {
        let mut many = values("https://upload.wikimedia.org/wikipedia/commons/many.jpg");
        many.extend(std::iter::repeat_n(b"more".to_vec(), count));
        rows.push(many);
    }
    let mut broken = values("https://upload.wikimedia.org/wikipedia/commons/broken.jpg");
    broken[15] = b"caf\xe9 in Latin-1, \xff\xfe".to_vec();
    rows.push(broken);
    let mut long = values(&long_url);
    long[15] = "A long \"context\"\twith a tab.\n".repeat(7_000).into_bytes();
    rows.push(long);
    rows
}
