//! Chooses inputs, captions and head from what was found.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::content::{self, Content, Format, MAX_ROWS};
use super::pictures::{MAX_TEXTS, choose_pictures};
use super::survey::{Group, Survey};
use crate::corpus::folder::{is_metadata, split_folder};
use crate::objects::Store;
use crate::pipeline::PipelineError;

/// Upper bound on the groups whose files are read.
const MAX_GROUPS: usize = 200;
/// Captions per distinct caption from which on captions count as classes.
const CLASS_REPEATS: usize = 4;
/// Column that the truth has beside `id`.
const TARGET: &str = "caption_title_and_reference_description";

/// Kind of the chosen head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    /// Projection into the space of a text encoder.
    Text,
    /// Classifier.
    Classes,
    /// No head: features only.
    None,
}

/// Images to train on.
#[derive(Debug, Default)]
pub(super) struct Images {
    /// Values of a published feature, if the shards hold these in place of images.
    pub(super) feature_dim: Option<u32>,
    /// Word of `images.format`.
    pub(super) format: &'static str,
    pub(super) shards: Vec<String>,
    /// Number of images, if it is known.
    pub(super) count: Option<u64>,
    /// Shards of test images.
    pub(super) test: Vec<String>,
}

/// Captions of the images.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    /// Empty: the files of the images.
    pub(super) shards: Vec<String>,
    pub(super) format: Option<&'static str>,
    pub(super) url_column: Option<String>,
    pub(super) caption_column: Option<String>,
    pub(super) folder_captions: Option<&'static str>,
    /// First captions.
    pub(super) captions: Vec<String>,
    /// Description for the findings.
    pub(super) what: String,
}

/// Inputs and head.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) found: Vec<(String, String)>,
    pub(super) left_out: Vec<String>,
    pub(super) head: Head,
    pub(super) reason: String,
    pub(super) images: Images,
    pub(super) pairs: Option<Pairs>,
    /// Captions to rank.
    pub(super) list: Option<String>,
    pub(super) ids: Option<String>,
    pub(super) truth: Option<String>,
}

/// Groups with the start of their first file.
pub(super) type Groups = Vec<(Group, Content)>;

/// Form of a table with images: its format, the column of the images, and the values of a published feature.
type Kind = (Format, Option<String>, Option<u32>);

fn kind_of(content: &Content) -> Kind {
    (content.format, content.image.clone(), content.feature_dim)
}

/// Chooses inputs, captions and head.
///
/// # Errors
/// When there are no images that the program reads.
pub(super) async fn choose(store: &Store, mut survey: Survey) -> Result<Choice, PipelineError> {
    let groups = read_groups(store, &mut survey).await;
    let picture_bytes: u64 = survey.pictures.values().sum();
    let mut tables: BTreeMap<Kind, u64> = BTreeMap::new();
    for (group, content) in groups.iter().filter(|(_, content)| content.image.is_some()) {
        *tables.entry(kind_of(content)).or_default() += group.bytes;
    }
    let largest = tables.into_iter().max_by_key(|(_, bytes)| *bytes);
    let mut found = Vec::new();
    let (images, pairs, used) = match largest {
        Some((kind, bytes)) if bytes > picture_bytes => {
            if !survey.pictures.is_empty() {
                survey.left_out.push(format!("{} picture files: other files hold more images", survey.pictures.len()));
            }
            let used = |content: &Content| content.image.is_some() && kind_of(content) == kind;
            let images = choose_tables(&groups, used, &mut found);
            (images, pair_tables(&groups, used), Some(kind))
        }
        _ if !survey.pictures.is_empty() => {
            let (images, pairs) = choose_pictures(store, &survey, &groups, &mut found).await;
            (images, pairs, None)
        }
        _ => return Err(nothing(&survey, &groups)),
    };
    for (group, content) in &groups {
        if content.image.is_some() && used.as_ref() != Some(&kind_of(content)) {
            survey.left_out.push(format!("{}: images in another form; run `init` on them alone", group.describe()));
        }
    }
    let (head, reason) = choose_head(pairs.as_ref());
    let pairs = pairs.filter(|_| head != Head::None);
    if let Some(pairs) = &pairs {
        found.push(("captions".to_owned(), pairs.what.clone()));
    }
    let table = |wanted: &dyn Fn(&Content) -> bool| {
        groups.iter().find(|(_, content)| wanted(content)).map(|(group, _)| group.first.clone())
    };
    let plain = |content: &Content| content.image.is_none();
    let list = table(&|content| plain(content) && content.format == Format::Csv && content.columns.len() == 1);
    let ids = table(&|content| {
        let named = content.has("id") && content.has("image_url");
        plain(content) && content.format == Format::Tsv && named && content.caption.is_none()
    });
    // A submission has the same columns.
    let truth = groups.iter().find(|(group, content)| {
        let named = split_folder(&group.first).1.contains("truth") || split_folder(&group.first).1.contains("solution");
        named && content.format == Format::Csv && content.has("id") && content.has(TARGET)
    });
    let truth = truth.map(|(group, _)| group.first.clone());
    let list = list.filter(|_| pairs.is_some());
    let (ids, truth) = if images.test.is_empty() { (None, None) } else { (ids, truth) };
    let used_files: Vec<&String> = [&list, &ids, &truth].into_iter().flatten().collect();
    for (group, _) in groups.iter().filter(|(_, content)| plain(content)) {
        let of_images = pairs.as_ref().is_some_and(|pairs| pairs.shards.contains(&group.pattern));
        if !of_images && !is_metadata(&group.first) && !used_files.contains(&&group.first) {
            survey.left_out.push(format!("{}: no captions of these images are recognised in it", group.describe()));
        }
    }
    for (name, file) in [("captions to rank", &list), ("test ids", &ids), ("right captions", &truth)] {
        if let Some(file) = file {
            found.push((name.to_owned(), format!("`{file}`")));
        }
    }
    Ok(Choice { found, left_out: survey.left_out, head, reason, images, pairs, list, ids, truth })
}

/// Reads the start of the first file of each group.
async fn read_groups(store: &Store, survey: &mut Survey) -> Groups {
    let (mut usable, mut read) = (Vec::new(), 0);
    for group in survey.take_groups() {
        read += 1;
        if read > MAX_GROUPS {
            survey.left_out.push(format!("{}: only {MAX_GROUPS} kinds of files are looked at", group.describe()));
            continue;
        }
        match Box::pin(content::read(store, &group.first)).await {
            Ok(content) => usable.push((group, content)),
            Err(why) => survey.left_out.push(format!("{}: {why}", group.describe())),
        }
    }
    usable
}

/// Returns the error for paths without images.
fn nothing(survey: &Survey, groups: &Groups) -> PipelineError {
    let mut seen: Vec<String> =
        groups.iter().map(|(group, content)| format!("{} ({})", group.describe(), content.format.word())).collect();
    seen.extend(survey.left_out.iter().cloned());
    seen.extend(survey.others.iter().map(|(extension, files)| match extension.as_str() {
        "" => format!("{files} files without an extension"),
        extension => format!("{files} files `*.{extension}`"),
    }));
    seen.truncate(8);
    let seen = if seen.is_empty() { "no files".to_owned() } else { seen.join("; ") };
    PipelineError::Input(format!(
        "no images were found, only: {seen}. Name a folder of pictures (jpg, png, webp, gif, bmp, tif), or files with images in \
         Parquet, tar, JSON lines or TSV"
    ))
}

fn choose_tables(groups: &Groups, used: impl Fn(&Content) -> bool, found: &mut Vec<(String, String)>) -> Images {
    let used: Vec<&(Group, Content)> = groups.iter().filter(|(_, content)| used(content)).collect();
    let split = used.iter().any(|(group, _)| !group.is_test);
    let mut images = Images { count: Some(0), ..Images::default() };
    for (group, content) in used {
        images.format = content.format.word();
        images.feature_dim = content.feature_dim;
        let test = split && group.is_test;
        let name = if test { "test images" } else { "images" };
        let shards = if test { &mut images.test } else { &mut images.shards };
        shards.push(group.pattern.clone());
        let column = content.image.as_deref().filter(|column| !column.is_empty());
        let column = column.map_or_else(String::new, |column| format!(", images in `{column}`"));
        let column = content.feature_dim.map_or(column, |dim| format!(", features of {dim} numbers"));
        found.push((name.to_owned(), format!("{}: {}{column}", content.format.word(), group.describe())));
        if !test {
            images.count = images.count.zip(content.row_count).map(|(count, rows)| count + rows * group.files);
        }
    }
    images
}

/// Chooses the captions of images in tables: those beside them, or tables of their own.
fn pair_tables(groups: &Groups, used: impl Fn(&Content) -> bool) -> Option<Pairs> {
    let own = groups.iter().find(|(group, content)| used(content) && content.caption.is_some() && !group.is_test);
    let own = own.or_else(|| groups.iter().find(|(_, content)| used(content) && content.caption.is_some()));
    if let Some((_, content)) = own {
        let column = content.caption.clone().unwrap_or_default();
        let what = format!("`{column}` beside the images");
        return Some(Pairs { captions: content.captions.clone(), what, ..Pairs::default() });
    }
    let mut sizes: BTreeMap<Format, u64> = BTreeMap::new();
    let is_pairs = |group: &Group, content: &Content| {
        content.image.is_none()
            && content.caption.is_some()
            && content.url.as_deref().is_some_and(|url| url != "id")
            && !group.is_test
    };
    for (group, content) in groups.iter().filter(|(group, content)| is_pairs(group, content)) {
        *sizes.entry(content.format).or_default() += group.bytes;
    }
    let (format, _) = sizes.into_iter().max_by_key(|(_, bytes)| *bytes)?;
    let mut pairs = Pairs { format: Some(format.word()), ..Pairs::default() };
    let mut what = Vec::new();
    for (group, content) in
        groups.iter().filter(|(group, content)| is_pairs(group, content) && content.format == format)
    {
        pairs.shards.push(group.pattern.clone());
        pairs.captions.extend(content.captions.iter().cloned());
        what.push(format!(
            "{}: {}, captions in `{}`",
            format.word(),
            group.describe(),
            content.caption.as_deref().unwrap_or_default()
        ));
    }
    pairs.what = what.join("; ");
    Some(pairs)
}

/// Chooses the head by the first captions, and says why.
fn choose_head(pairs: Option<&Pairs>) -> (Head, String) {
    let Some(pairs) = pairs else {
        return (Head::None, "no captions were found, so the run ends with features".to_owned());
    };
    let captions: Vec<&str> =
        pairs.captions.iter().map(|caption| caption.trim()).filter(|caption| !caption.is_empty()).collect();
    let distinct = captions.iter().collect::<BTreeSet<_>>().len();
    let looked_at = match captions.len() {
        count if count >= MAX_ROWS.min(MAX_TEXTS) && pairs.folder_captions != Some("folders") => {
            format!("the first {count} captions")
        }
        count => format!("{count} captions"),
    };
    if distinct < 2 {
        let what = if distinct == 0 { "no caption could be read" } else { "all captions are equal" };
        return (Head::None, format!("{what}, so the run ends with features"));
    }
    if captions.len() >= CLASS_REPEATS * distinct || pairs.folder_captions == Some("folders") {
        return (Head::Classes, format!("{looked_at}, {distinct} of them different: few enough to be classes"));
    }
    (Head::Text, format!("{looked_at}, {distinct} of them different: too many to be classes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_captions_are_classes_and_different_ones_text() {
        let head = |captions: &[&str]| {
            let captions = captions.iter().map(|caption| (*caption).to_owned()).collect();
            choose_head(Some(&Pairs { captions, ..Pairs::default() })).0
        };
        assert_eq!(head(&["cat", "dog", "cat", "dog", "cat", "dog", "cat ", "dog"]), Head::Classes);
        assert_eq!(head(&["a cat", "a dog", "a bee", "a cat"]), Head::Text);
        assert_eq!(head(&["same", "same", " same"]), Head::None);
        assert_eq!(head(&["", " "]), Head::None);
        assert_eq!(choose_head(None).0, Head::None);
    }
}
