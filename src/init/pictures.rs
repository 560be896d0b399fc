//! Chooses folders of pictures, and the captions that belong to them.

use std::collections::{BTreeMap, BTreeSet};

use super::choice::{Groups, Images, Pairs};
use super::content::Content;
use super::survey::{Group, Survey, common_folder};
use crate::corpus::folder::{METADATA_NAMES, split_folder};
use crate::objects::Store;

/// Upper bound on the texts beside pictures that are read.
pub(super) const MAX_TEXTS: usize = 200;
/// Upper bound on the bytes of such a text.
const MAX_TEXT_BYTES: u64 = 1 << 20;
/// Chooses the folders of the pictures, and their captions.
pub(super) async fn choose_pictures(
    store: &Store,
    survey: &Survey,
    groups: &Groups,
    found: &mut Vec<(String, String)>,
) -> (Images, Option<Pairs>) {
    let (test, train): (Vec<&str>, Vec<&str>) =
        survey.pictures.keys().map(String::as_str).partition(|picture| survey.is_test(split_folder(picture).0));
    let (mut test, mut train) = if train.is_empty() { (train, test) } else { (test, train) };
    let test_folder = common_folder(test.iter().copied());
    let mut folder = common_folder(train.iter().copied());
    if test_folder.starts_with(&folder) {
        train.append(&mut test);
    }
    let metadata = groups.iter().find(|(group, content)| {
        let (beside, name) = split_folder(&group.first);
        METADATA_NAMES.contains(&name)
            && content.caption.is_some()
            && (folder.starts_with(beside) || beside.starts_with(&folder))
    });
    if let Some((group, _)) = metadata {
        folder = common_folder([folder.as_str(), group.first.as_str()].into_iter());
    }
    let pairs = match metadata {
        Some((group, content)) => Some(Pairs {
            folder_captions: Some("metadata"),
            captions: content.captions.clone(),
            what: format!("`{}`, column `{}`", group.first, content.caption.as_deref().unwrap_or_default()),
            ..Pairs::default()
        }),
        None => captions_of_pictures(store, survey, groups, &folder, &train).await,
    };
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    for picture in &train {
        *kinds.entry(picture.rsplit('.').next().unwrap_or_default().to_lowercase()).or_default() += 1;
    }
    let kinds: Vec<String> = kinds.into_iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    let shard = |folder: &str| if folder.is_empty() { "./".to_owned() } else { folder.to_owned() };
    found.push((
        "images".to_owned(),
        format!("{} picture files in `{}` ({})", train.len(), shard(&folder), kinds.join(", ")),
    ));
    let mut images =
        Images { format: "folder", shards: vec![shard(&folder)], count: Some(train.len() as u64), ..Images::default() };
    if !test.is_empty() {
        found.push(("test images".to_owned(), format!("{} picture files in `{}`", test.len(), shard(&test_folder))));
        images.test.push(shard(&test_folder));
    }
    (images, pairs)
}

/// Chooses the captions of pictures that no `metadata` file describes.
async fn captions_of_pictures(
    store: &Store,
    survey: &Survey,
    groups: &Groups,
    folder: &str,
    pictures: &[&str],
) -> Option<Pairs> {
    if survey.count_texts() * 2 >= pictures.len() {
        let mut captions = Vec::new();
        for text in survey.texts_beside(MAX_TEXTS) {
            if let Ok(bytes) = Box::pin(store.read(&text, MAX_TEXT_BYTES)).await {
                captions.push(String::from_utf8_lossy(&bytes).trim().to_owned());
            }
        }
        let what = format!("{} files `NAME.txt` beside the pictures", survey.count_texts());
        return Some(Pairs { folder_captions: Some("text"), captions, what, ..Pairs::default() });
    }
    let names: BTreeSet<&str> = pictures.iter().filter_map(|picture| picture.strip_prefix(folder)).collect();
    let tables = groups.iter().filter_map(|(group, content)| naming_table(group, content, &names));
    if let Some(pairs) = tables.max_by_key(|pairs| pairs.captions.len()) {
        return Some(pairs);
    }
    let classes: Vec<&str> =
        names.iter().filter_map(|name| split_folder(split_folder(name).0.strip_suffix('/')?).1.into()).collect();
    let distinct: BTreeSet<&&str> = classes.iter().collect();
    if distinct.len() < 2 || classes.len() < names.len() || distinct.len() * 2 > names.len() {
        return None;
    }
    Some(Pairs {
        folder_captions: Some("folders"),
        what: format!("the names of {} folders", distinct.len()),
        captions: classes.into_iter().map(ToOwned::to_owned).collect(),
        ..Pairs::default()
    })
}

/// Returns the captions of a table with a column that names the pictures.
fn naming_table(group: &Group, content: &Content, names: &BTreeSet<&str>) -> Option<Pairs> {
    let share = |column: &String| {
        let values = content.values(column);
        let known = values.iter().filter(|value| names.contains(value.trim_start_matches("./"))).count();
        (known * 2 >= values.len().max(1)).then_some(known)
    };
    let (_, url) = content.columns.iter().filter_map(|column| Some((share(column)?, column))).max()?;
    let length = |column: &&String| content.values(column).iter().map(|value| value.chars().count()).sum::<usize>();
    let caption = match &content.caption {
        Some(caption) if caption != url => caption.clone(),
        _ => content.columns.iter().filter(|column| *column != url).max_by_key(length)?.clone(),
    };
    let what = format!("{}, column `{caption}`; pictures are named by `{url}`", group.describe());
    Some(Pairs {
        shards: vec![group.pattern.clone()],
        format: Some(content.format.word()),
        captions: content.values(&caption),
        url_column: Some(url.clone()),
        caption_column: Some(caption),
        what,
        ..Pairs::default()
    })
}
