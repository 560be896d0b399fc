//! Words in the file name of an image URL.

use percent_encoding::percent_decode_str;

/// Prefixes that cameras and scanners put before a number.
const CAMERA_PREFIXES: [&str; 17] = [
    "dsc",
    "dscn",
    "dscf",
    "dscx",
    "img",
    "image",
    "imgp",
    "pict",
    "pic",
    "photo",
    "scan",
    "gopr",
    "mvi",
    "vid",
    "cimg",
    "sam",
    "screenshot",
];

/// Extracts the words of a URL's file name. Percent-decodes it, drops the extension, the thumbnail width (`300px-`) and
/// camera numbering (`DSC_0123`), and turns separators into spaces. Returns an empty string if nothing is left.
pub fn file_name_words(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let last = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
    let decoded = percent_decode_str(last).decode_utf8_lossy();
    let name = strip_thumbnail_width(&decoded);
    // Renderings of vector drawings have two extensions: `Coat.svg.png`.
    let name = strip_extension(name);
    let name = match name.rsplit_once('.') {
        Some((stem, ending)) if !stem.is_empty() && is_image_extension(ending) => stem,
        _ => name,
    };
    let spaced: String = name
        .chars()
        .map(|letter| {
            if matches!(letter, '_' | '-' | '+' | '.' | ',' | ';' | '~') || letter.is_whitespace() {
                ' '
            } else {
                letter
            }
        })
        .collect();
    let words: Vec<&str> = spaced.split_whitespace().collect();
    words[camera_word_count(&words)..].join(" ")
}

/// Strips the width prefix of a thumbnail.
fn strip_thumbnail_width(name: &str) -> &str {
    let digits = name.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 { name } else { name[digits..].strip_prefix("px-").unwrap_or(name) }
}

/// Returns whether a second extension is a known one. Most dots inside a name do not start an extension.
fn is_image_extension(ending: &str) -> bool {
    const FORMATS: [&str; 14] =
        ["svg", "tif", "tiff", "pdf", "djvu", "xcf", "gif", "png", "jpg", "jpeg", "webp", "ogv", "webm", "stl"];
    FORMATS.contains(&ending.to_ascii_lowercase().as_str())
}

fn strip_extension(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((stem, ending)) => {
            let is_ending = (2..=5).contains(&ending.len()) && ending.bytes().all(|byte| byte.is_ascii_alphanumeric());
            let has_letter = ending.bytes().any(|byte| byte.is_ascii_alphabetic());
            if is_ending && has_letter && !stem.is_empty() { stem } else { name }
        }
        None => name,
    }
}

/// Returns how many leading words are camera numbering: a prefix and numbers, or both in one word (`P1010023`,
/// `IMG0042`).
fn camera_word_count(words: &[&str]) -> usize {
    let number = |word: &&&str| word.bytes().all(|byte| byte.is_ascii_digit());
    let Some(first) = words.first() else { return 0 };
    let letters: String = first.chars().take_while(char::is_ascii_alphabetic).collect::<String>().to_ascii_lowercase();
    let rest = &first[letters.len()..];
    let digits = !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    let is_camera = CAMERA_PREFIXES.contains(&letters.as_str());
    if (is_camera && digits) || (letters == "p" && digits && rest.len() >= 6) {
        // Further numbers may follow.
        return 1 + words[1..].iter().take_while(number).count();
    }
    if is_camera && rest.is_empty() {
        let numbers = words[1..].iter().take_while(number).count();
        return if numbers > 0 { 1 + numbers } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_name_words_drop_what_machines_add() {
        for (url, expected) in [
            (
                "https://upload.wikimedia.org/wikipedia/commons/a/ab/Eiffel_Tower_from-below.jpg",
                "Eiffel Tower from below",
            ),
            ("http://x/thumb/a/ab/Caf%C3%A9_de_Flore.jpg/300px-Caf%C3%A9_de_Flore.jpg", "Café de Flore"),
            ("https://x/Coat_of_arms.svg.png?width=300#top", "Coat of arms"),
            ("https://x/DSC_0123_Old_town_hall.JPG", "Old town hall"),
            ("https://x/IMG_20190412_101112.jpg", ""),
            ("https://x/P1010023%20Harbour.jpg", "Harbour"),
            ("https://x/DSCN0042.jpeg", ""),
            ("https://x/Image_of_a_dog.png", "Image of a dog"),
            ("https://x/%E5%AF%8C%E5%A3%AB%E5%B1%B1.jpg", "富士山"),
            ("https://x/Version_2.0.jpg", "Version 2 0"),
            ("https://x/St._Paul's.tif", "St Paul's"),
            ("https://x/Mr.Bean.jpg", "Mr Bean"),
            ("https://x/H.G.Wells.jpg", "H G Wells"),
            ("https://x/.jpg", "jpg"),
            ("https://x/", "x"),
            ("", ""),
            ("%ff%fe_bad.gif", "\u{fffd}\u{fffd} bad"),
        ] {
            assert_eq!(file_name_words(url), expected, "{url}");
        }
    }
}
