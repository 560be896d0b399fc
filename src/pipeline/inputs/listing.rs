//! Patterns → objects and their format.

use std::path::Path;
use std::sync::Arc;

use tokio::io::AsyncBufReadExt as _;

use super::{ImageInput, PairInput};
use crate::config::{ImageColumnNames, PairsConfig};
use crate::corpus::folder::{is_image, is_metadata, split_folder};
use crate::objects::{FileFormat, Folder, Object, Store, explain_read};
use crate::pipeline::error::PipelineError;
use crate::types::{ImageFormat, PairsFormat};

/// Format of a file, as its name and first bytes show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileKind {
    Tsv,
    Csv,
    Parquet,
    Jsonl,
    Tar,
    Image,
    /// Text, by a name that does not tell which.
    Text,
}

/// Lists images. The format is recognised by the first file unless it is configured.
///
/// # Errors
/// When a pattern matches nothing, or a file has no format that is read.
pub(crate) async fn list_images(
    store: &Store,
    patterns: &[String],
    format: ImageFormat,
    columns: &ImageColumnNames,
) -> Result<(ImageInput, Vec<Object>), PipelineError> {
    let (objects, kind) = list(store, patterns, format == ImageFormat::Auto, format == ImageFormat::Folder).await?;
    if let (Listed::Folders(folders), Some(FileKind::Csv | FileKind::Text)) = (&objects, kind) {
        return Err(refuse_texts(folders, "images", "images.format"));
    }
    let format = match (format, kind) {
        (ImageFormat::Auto, Some(FileKind::Image)) => ImageFormat::Folder,
        (ImageFormat::Auto, Some(FileKind::Parquet)) => ImageFormat::Parquet,
        (ImageFormat::Auto, Some(FileKind::Jsonl)) => ImageFormat::Jsonl,
        (ImageFormat::Auto, Some(FileKind::Tar)) => ImageFormat::WebDataset,
        (ImageFormat::Auto, Some(FileKind::Tsv | FileKind::Csv | FileKind::Text) | None) => ImageFormat::Tsv,
        (format, _) => format,
    };
    let objects = if format == ImageFormat::Folder { make_folders(objects)? } else { flatten(objects) };
    Ok((ImageInput::new(format, columns), objects))
}

/// Lists files of captions, as [`list_images`] lists images.
///
/// # Errors
/// As [`list_images`].
pub(crate) async fn list_pairs(store: &Store, pairs: &PairsConfig) -> Result<(PairInput, Vec<Object>), PipelineError> {
    let (auto, folder) = (pairs.format == PairsFormat::Auto, pairs.format == PairsFormat::Folder);
    let (objects, kind) = list(store, &pairs.shards, auto, folder).await?;
    if let (Listed::Folders(folders), Some(FileKind::Text)) = (&objects, kind) {
        return Err(refuse_texts(folders, "captions", "pairs.format"));
    }
    let format = match (pairs.format, kind) {
        (PairsFormat::Auto, Some(FileKind::Image)) => PairsFormat::Folder,
        (PairsFormat::Auto, Some(FileKind::Parquet)) => PairsFormat::Parquet,
        (PairsFormat::Auto, Some(FileKind::Jsonl)) => PairsFormat::Jsonl,
        (PairsFormat::Auto, Some(FileKind::Tar)) => PairsFormat::WebDataset,
        (PairsFormat::Auto, Some(FileKind::Csv)) => PairsFormat::Csv,
        (PairsFormat::Auto, Some(FileKind::Tsv | FileKind::Text) | None) => PairsFormat::Tsv,
        (format, _) => format,
    };
    let objects = if format == PairsFormat::Folder { make_folders(objects)? } else { flatten(objects) };
    Ok((PairInput::new(format, pairs), objects))
}

/// Returns the error for folders that hold text files alone, none of them in a known format.
fn refuse_texts(folders: &[(String, Vec<Object>)], what: &str, key: &str) -> PipelineError {
    let folder = folders.iter().find(|(_, files)| !files.is_empty());
    let (url, first) = folder.map_or(("", ""), |(url, files)| (url.as_str(), files[0].name.as_str()));
    PipelineError::Input(format!(
        "`{}` holds text files, such as `{first}`, and no {what}: name another folder, or say with `{key}` what the files are",
        Store::redact(url)
    ))
}

/// Objects that the patterns name: files, or folders with their files.
enum Listed {
    Files(Vec<Object>),
    Folders(Vec<(String, Vec<Object>)>),
}

async fn list(
    store: &Store,
    patterns: &[String],
    auto: bool,
    is_folder: bool,
) -> Result<(Listed, Option<FileKind>), PipelineError> {
    let folders = patterns.iter().filter(|pattern| Store::is_folder(pattern)).count();
    if folders > 0 && folders < patterns.len() {
        return Err(PipelineError::Input(format!(
            "`{}` is a folder, but other patterns of the list name files: list them separately",
            Store::redact(patterns.iter().find(|pattern| Store::is_folder(pattern)).map_or("", String::as_str))
        )));
    }
    if folders == 0 {
        let objects = store.list(patterns).await?;
        let kind = match objects.first() {
            Some(first) if auto => Some(recognise(store, first).await?),
            _ => None,
        };
        return Ok((Listed::Files(objects), kind));
    }
    let mut listed = store.list_folders(patterns).await?;
    if is_folder {
        return Ok((Listed::Folders(listed), None));
    }
    let files = || listed.iter().flat_map(|(_, files)| files);
    let known = || files().filter(|file| !is_metadata(&file.name)).filter_map(|file| kind_by_name(&file.url));
    // A folder of images may hold captions; a folder of anything else is a folder of shards of one kind.
    let kind = if known().any(|kind| kind == FileKind::Image) { Some(FileKind::Image) } else { known().next() };
    let kind = match (kind, files().next()) {
        (None, Some(first)) if auto => Some(recognise(store, first).await?),
        (kind, _) => kind,
    };
    if let Some(kind) = kind.filter(|kind| *kind != FileKind::Image) {
        // Files such as `README.md` beside them are no shards.
        let unnamed = known().next().is_none();
        for (_, files) in &mut listed {
            files.retain(|file| unnamed || kind_by_name(&file.url) == Some(kind));
        }
    }
    Ok((Listed::Folders(listed), kind.filter(|_| auto)))
}

/// Makes one list of the files in all folders, each named by its path below what the folders share.
fn flatten(listed: Listed) -> Vec<Object> {
    let folders = match listed {
        Listed::Files(objects) => return objects,
        Listed::Folders(folders) => folders,
    };
    let names = short_names(&folders.iter().map(|(url, _)| url.as_str()).collect::<Vec<_>>());
    let several = folders.len() > 1;
    let rename = |mut file: Object, folder: &str| {
        if several {
            file.name = format!("{folder}/{}", file.name);
        }
        file
    };
    let files = folders.into_iter().zip(names);
    files.flat_map(|((_, files), folder)| files.into_iter().map(move |file| rename(file, &folder))).collect()
}

/// Makes an object of each folder of image files. Files that a pattern names are one folder.
fn make_folders(listed: Listed) -> Result<Vec<Object>, PipelineError> {
    let folders = match listed {
        Listed::Folders(folders) => folders,
        Listed::Files(files) => {
            let url = files.first().map_or_else(String::new, |file| split_folder(&file.url).0.to_owned());
            vec![(url, files)]
        }
    };
    let several = folders.len() > 1;
    let names = short_names(&folders.iter().map(|(url, _)| url.as_str()).collect::<Vec<_>>());
    let make = |((url, files), name): ((String, Vec<Object>), String)| {
        let prefix = if several { format!("{name}/") } else { String::new() };
        let (mut images, mut others) = (Vec::new(), Vec::new());
        for mut file in files {
            let is_caption = is_metadata(&file.name) || has_extension(&file.name, "txt");
            if is_image(&file.name) {
                file.name.insert_str(0, &prefix);
                images.push(file);
            } else if is_caption {
                file.name.insert_str(0, &prefix);
                others.push(file);
            }
        }
        let empty = format!("`{url}` holds no image file (JPEG, PNG, WebP, GIF, BMP or TIFF, by their extensions)");
        let folder = Folder { files: images, others };
        Object::from_folder(url, name, folder).ok_or(PipelineError::Input(empty))
    };
    folders.into_iter().zip(names).map(make).collect()
}

/// Returns the part of each folder's URL that follows the folder common to all of them; the last part of a single one.
fn short_names(urls: &[&str]) -> Vec<String> {
    let parts: Vec<Vec<&str>> = urls.iter().map(|url| url.trim_end_matches('/').split('/').collect()).collect();
    let shortest = parts.iter().map(Vec::len).min().unwrap_or(0);
    let common = (0..shortest.saturating_sub(1))
        .take_while(|at| parts.iter().all(|other| other.get(*at) == parts[0].get(*at)))
        .count();
    parts.iter().map(|parts| parts.get(common..).unwrap_or_default().join("/")).collect()
}

/// Returns the lower-case name of a file without a query and the ending of its compression.
fn plain_name(url: &str) -> String {
    let url = Store::redact(url).to_ascii_lowercase();
    let plain = url.strip_suffix(".gz").or_else(|| url.strip_suffix(".zst")).unwrap_or(&url);
    plain.to_owned()
}

/// Returns whether a name has an extension, in any case.
fn has_extension(name: &str, wanted: &str) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case(wanted))
}

/// Returns the format of a file whose name tells it.
fn kind_by_name(url: &str) -> Option<FileKind> {
    let name = plain_name(url);
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    Some(match () {
        () if ends(&[".parquet", ".pq"]) => FileKind::Parquet,
        () if ends(&[".tar", ".tgz"]) => FileKind::Tar,
        () if ends(&[".jsonl", ".ndjson"]) => FileKind::Jsonl,
        () if ends(&[".tsv"]) => FileKind::Tsv,
        () if is_image(Store::redact(url)) => FileKind::Image,
        () => return None,
    })
}

/// Recognises the format of a file by its name, and else by its first bytes.
async fn recognise(store: &Store, object: &Object) -> Result<FileKind, PipelineError> {
    if let Some(kind) = kind_by_name(&object.url) {
        return Ok(kind);
    }
    if object.size == 0 {
        return Ok(FileKind::Tsv);
    }
    let name = plain_name(&object.url);
    let (mut reader, content) = store.open_any(object, Arc::default()).await?;
    Ok(match content.format {
        FileFormat::Parquet => FileKind::Parquet,
        FileFormat::Tar => FileKind::Tar,
        FileFormat::JsonLines => FileKind::Jsonl,
        FileFormat::Image => FileKind::Image,
        FileFormat::JsonArray => {
            return Err(PipelineError::Input(format!(
                "`{}` is one JSON array, which cannot be read row by row: write one object per line, for example with `jq -c '.[]'`",
                object.url
            )));
        }
        // Image shards are named `.csv` and hold tabs.
        FileFormat::Text if has_extension(&name, "csv") => {
            let head = reader.fill_buf().await.map_err(|error| explain_read(&object.url, error))?;
            let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
            if line.contains(&b'\t') { FileKind::Tsv } else { FileKind::Csv }
        }
        FileFormat::Text if Path::new(&name).extension().is_some() => FileKind::Text,
        // Opening it as text refuses any other format by name.
        _ => FileKind::Tsv,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn folders_are_named_below_what_they_share() {
        assert_eq!(short_names(&["/data/photos/"]), ["photos"]);
        assert_eq!(short_names(&["s3://b/x/a/", "s3://b/x/b/c/"]), ["a", "b/c"]);
        assert_eq!(short_names(&["/x/a/", "/x/a/b/"]), ["a", "a/b"]);
    }

    #[tokio::test]
    async fn formats_are_recognised_by_name_and_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"{\"image_url\": 1}\n").unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        tar.append_data(&mut header, "x", &b""[..]).unwrap();
        let files: [(&str, Vec<u8>, FileKind); 11] = [
            ("part-0.csv", b"http://a\tQUJD\tm\n".to_vec(), FileKind::Tsv),
            ("captions.csv", b"file_name,text\n".to_vec(), FileKind::Csv),
            ("captions.tsv", b"a,b\n".to_vec(), FileKind::Tsv),
            ("part-0.json.gz", packed.finish().unwrap(), FileKind::Jsonl),
            ("x.jsonl", b"anything".to_vec(), FileKind::Jsonl),
            ("noname", b"PAR1\x15\x04....".to_vec(), FileKind::Parquet),
            ("noname2", tar.into_inner().unwrap(), FileKind::Tar),
            ("x.tar.gz", b"".to_vec(), FileKind::Tar),
            ("noname3", b"\xff\xd8\xff\xe0".to_vec(), FileKind::Image),
            ("A.JPG", b"x".to_vec(), FileKind::Image),
            ("empty", b"".to_vec(), FileKind::Tsv),
        ];
        let store = Store::default();
        for (name, content, expected) in files {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            let object = store.find(path.to_str().unwrap()).await.unwrap();
            assert_eq!(recognise(&store, &object).await.unwrap(), expected, "{name}");
        }
        std::fs::write(dir.path().join("a.json"), "[{\"a\": 1}]").unwrap();
        let object = store.find(dir.path().join("a.json").to_str().unwrap()).await.unwrap();
        assert!(recognise(&store, &object).await.unwrap_err().to_string().contains("one object per line"));
    }

    #[tokio::test]
    async fn folders_hold_images_and_captions() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "p/a/1.jpg",
            "p/a/1.txt",
            "p/b/2.PNG",
            "p/b/notes.md",
            "p/metadata.csv",
            "q/3.jpg",
            "t/README.md",
            "t/x.tar",
        ] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        let path = |name: &str| dir.path().join(name).display().to_string();
        let list = async |names: &[&str]| {
            let patterns: Vec<String> = names.iter().map(|name| path(name)).collect();
            list_images(&Store::default(), &patterns, ImageFormat::Auto, &ImageColumnNames::default()).await
        };
        let (input, objects) = list(&["p"]).await.unwrap();
        let folder = objects[0].folder().unwrap();
        let names = |files: &[Object]| files.iter().map(|file| file.name.clone()).collect::<Vec<_>>();
        assert_eq!((input.format, objects[0].name.as_str(), objects[0].size), (ImageFormat::Folder, "p", 18));
        assert_eq!(names(&folder.files), ["a/1.jpg", "b/2.PNG"]);
        assert_eq!(names(&folder.others), ["a/1.txt", "metadata.csv"]);
        let (_, objects) = list(&["p", "q"]).await.unwrap();
        assert_eq!(names(&objects[1].folder().unwrap().files), ["q/3.jpg"]);
        let (_, objects) = list(&["p/*/*.jpg", "q/*.jpg"]).await.unwrap();
        assert_eq!(names(&objects[0].folder().unwrap().files), ["p/a/1.jpg", "q/3.jpg"]);
        let (input, objects) = list(&["t/"]).await.unwrap();
        assert_eq!((input.format, names(&objects)), (ImageFormat::WebDataset, vec!["x.tar".to_owned()]));
        std::fs::create_dir(dir.path().join("n")).unwrap();
        std::fs::write(dir.path().join("n/1.txt"), "a note\n").unwrap();
        let error = list(&["n"]).await.unwrap_err().to_string();
        assert!(error.contains("/n/` holds text files, such as `1.txt`, and no images: name another"), "{error}");
        let error = list(&["p", "t/x.tar"]).await.unwrap_err().to_string();
        assert!(error.contains("is a folder, but other patterns"), "{error}");
    }
}
