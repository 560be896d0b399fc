//! Names in a folder of image files: which are images, and which hold captions.

/// Extensions of image files.
const IMAGE_EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];
/// Names of files with captions, in the order in which they are preferred.
pub const METADATA_NAMES: [&str; 4] = ["metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet"];

/// Splits a path into its folder, with the final `/`, and its file name.
pub fn split_folder(path: &str) -> (&str, &str) {
    path.split_at(path.rfind('/').map_or(0, |slash| slash + 1))
}

/// Returns the file name without its extension, and the extension.
fn split_extension(path: &str) -> Option<(&str, &str)> {
    let (_, name) = split_folder(path);
    let (stem, extension) = name.rsplit_once('.')?;
    // A hidden file, or that of a system such as `._photo.jpg`, is not an image.
    (!stem.is_empty() && !stem.starts_with('.')).then_some((stem, extension))
}

/// Returns whether a path names an image file.
pub fn is_image(path: &str) -> bool {
    split_extension(path)
        .is_some_and(|(_, extension)| IMAGE_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

/// Returns the path of the text beside an image.
pub fn text_of(image: &str) -> String {
    let stem = image.rsplit_once('.').map_or(image, |(stem, _)| stem);
    format!("{stem}.txt")
}

/// Returns the name of the folder that holds an image; `None` at the top.
pub fn class_of(image: &str) -> Option<&str> {
    let (folder, _) = split_folder(image);
    let folder = folder.strip_suffix('/')?;
    Some(split_folder(folder).1)
}

/// Returns whether a path names a file of captions for the images in its folder and below.
pub fn is_metadata(path: &str) -> bool {
    METADATA_NAMES.contains(&split_folder(path).1)
}

/// Joins a folder and the name of an image in it, as a file of captions writes it. Steps such as `./` and `../` are taken; a name
/// that leads out of the top folder is `None`.
pub fn join(folder: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    let full = format!("{folder}{name}");
    for part in full.split(['/', '\\']) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            other => parts.push(other),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_a_file_is() {
        for image in ["a.jpg", "x/y/B.JPEG", "c.d.png", "Ünï.WebP"] {
            assert!(is_image(image), "{image}");
        }
        for other in ["a.txt", "jpg", ".jpg", "x/._a.jpg", "metadata.csv", "a.jpg/"] {
            assert!(!is_image(other), "{other}");
        }
        assert!(is_metadata("x/metadata.jsonl") && is_metadata("metadata.csv") && !is_metadata("my-metadata.csv"));
        assert_eq!(
            (text_of("x/a.b.jpg").as_str(), class_of("x/cat/a.jpg"), class_of("a.jpg")),
            ("x/a.b.txt", Some("cat"), None)
        );
    }

    #[test]
    fn names_in_metadata_are_relative_and_stay_inside() {
        assert_eq!(join("x/", "./a.jpg").as_deref(), Some("x/a.jpg"));
        assert_eq!(join("x/", "../y/a.jpg").as_deref(), Some("y/a.jpg"));
        assert_eq!(join("", "sub\\a.jpg").as_deref(), Some("sub/a.jpg"));
        assert_eq!((join("x/", "../../a.jpg"), join("", "")), (None, None));
    }
}
