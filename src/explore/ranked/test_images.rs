//! Test images with the captions of their submission.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::sync::Arc;

use super::{Picture, PictureSet, RankedCaption, SetWriter, mean_gain};
use crate::catalog::url_hash;
use crate::corpus::TestIds;
use crate::explore::captions;
use crate::explore::images::ImageIndex;
use crate::explore::internal;
use crate::explore::jobs::Progress;
use crate::explore::opened::OpenRun;
use crate::objects::{Store, StoreError};
use crate::pipeline::PipelineError;
use crate::pipeline::feed::feed_parser;
use crate::predict::evaluate::{TruthRow, read_truth};
use crate::predict::metrics::rank_of;

/// Upper bound on a row of the ids file.
const MAX_RECORD_BYTES: usize = 1 << 20;
/// Upper bound on the truth file.
const MAX_TRUTH_BYTES: u64 = 1 << 30;

/// Reads the submission of a set of test images, with the truth where it is known.
pub(super) async fn read(
    run: Arc<OpenRun>,
    stem: String,
    images: Arc<ImageIndex>,
    progress: Progress,
) -> Result<PictureSet, PipelineError> {
    let mut notes = Vec::new();
    let is_own = run.config.output() == format!("{stem}.csv");
    let ids =
        run.config.predict().filter(|predict| is_own && !predict.ids.is_empty()).map(|predict| predict.ids.clone());
    let named = run.config.predict().and_then(|predict| predict.truth.clone()).filter(|_| is_own);
    let truth = if let Some(name) = named {
        read_truth_rows(&run, &name).await.unwrap_or_else(|error| {
            notes.push(format!("right captions are not shown: {}", crate::pipeline::chain(&error)));
            Vec::new()
        })
    } else {
        notes.push("the right captions of these images are not known: `predict.truth` is not set".to_owned());
        Vec::new()
    };
    let urls = match ids {
        Some(ids) => Some(read_ids(&run.store, &ids).await?),
        None => None,
    };
    progress.set_total(u64::from(images.file.rows()));
    tokio::task::spawn_blocking(move || write(&run, &stem, &images, (urls, &truth), notes, &progress)).await?
}

async fn read_truth_rows(run: &OpenRun, name: &str) -> Result<Vec<TruthRow>, PipelineError> {
    let content = run.store.read(name, MAX_TRUTH_BYTES).await?;
    read_truth(&*content)
        .map_err(|error| PipelineError::Input(format!("`{}`: {}", Store::redact(name), crate::pipeline::chain(&error))))
}

/// URL of each id.
type Urls = HashMap<Box<str>, Box<str>>;

/// Reads the URL of each id.
async fn read_ids(store: &Store, name: &str) -> Result<Urls, PipelineError> {
    let object = store.find(name).await?;
    let mut reader = store.open(&object, Arc::default()).await?;
    let mut rows = TestIds::new(&object.url, MAX_RECORD_BYTES);
    let mut urls = HashMap::new();
    loop {
        let more = feed_parser(&mut reader, &mut rows, &object.url).await?;
        while let Some(id) = rows.next()? {
            urls.insert(id.id.into(), id.image_url.into());
        }
        if !more {
            return Ok(urls);
        }
    }
}

/// Captions of one id in the order of the submission.
type Group = (String, Vec<String>);

/// Passes the captions of each id of a submission to `visit`.
fn visit_submission(
    run: &OpenRun,
    name: &str,
    mut visit: impl FnMut(Group) -> Result<(), PipelineError>,
) -> Result<(), PipelineError> {
    let present = run.dir.list("")?.iter().any(|file| file == name);
    if !present {
        return Err(PipelineError::Input(format!(
            "`{name}` is not written yet: look again when stage `predict` is done"
        )));
    }
    let copy = run.dir.fetch(name)?;
    let file = File::open(&copy).map_err(|error| StoreError::io(&copy, "opened", error))?;
    let refused = |error: csv::Error| PipelineError::Input(format!("`{}`: {error}", run.dir.display(name)));
    let mut open: Option<Group> = None;
    for row in csv::Reader::from_reader(file).into_records() {
        let row = row.map_err(refused)?;
        let (id, caption) = (row.get(0).unwrap_or_default(), row.get(1).unwrap_or_default());
        match &mut open {
            Some((other, captions)) if other == id => captions.push(caption.to_owned()),
            _ => {
                open.replace((id.to_owned(), vec![caption.to_owned()])).map_or(Ok(()), &mut visit)?;
            }
        }
    }
    open.map_or(Ok(()), visit)
}

fn write(
    run: &OpenRun,
    stem: &str,
    images: &ImageIndex,
    (urls, truth): (Option<Urls>, &[TruthRow]),
    mut notes: Vec<String>,
    progress: &Progress,
) -> Result<PictureSet, PipelineError> {
    let name = format!("{stem}.csv");
    let mut row_of: Vec<(u64, u32)> = Vec::with_capacity(images.file.rows() as usize);
    for row in 0..images.file.rows() {
        row_of.push((url_hash(&images.record(row)?.url), row));
    }
    row_of.sort_unstable();
    let mut right_of: HashMap<&str, Vec<&TruthRow>> = HashMap::new();
    for row in truth {
        right_of.entry(&*row.id).or_default().push(row);
    }
    let mut shown = BTreeSet::new();
    visit_submission(run, &name, |(_, captions)| {
        shown.extend(captions.iter().map(|caption| url_hash(caption)));
        Ok(())
    })?;
    shown.extend(truth.iter().map(|row| url_hash(&row.caption)));
    let list = captions::find_known(run, &shown)?;
    if list.is_none() {
        notes.push("scores are not shown: no list of captions of the run holds those of the submission".to_owned());
    }
    let mut writer = SetWriter::create()?;
    visit_submission(run, &name, |(id, ranked)| {
        let url = match &urls {
            Some(urls) => urls.get(&*id).map_or("", |url| &**url),
            None => &id,
        };
        let hash = url_hash(url);
        let row = row_of.binary_search_by_key(&hash, |(hash, _)| *hash).ok().map(|place| row_of[place].1);
        let image = row.map(|row| images.query(run, row)).transpose()?;
        let query = image.as_ref().and_then(|query| query.captions.as_deref());
        let caption = |text: &str, is_right: bool| {
            let known = list.as_ref().map(|list| list.look_up(text, query)).transpose()?;
            let (language, score) = known.unwrap_or_default();
            Ok::<_, PipelineError>(RankedCaption { text: text.to_owned(), language, score, is_right })
        };
        let right = right_of.get(&*id).map(Vec::as_slice).unwrap_or_default();
        let is_right = |text: &str| right.iter().any(|row| &*row.caption == text);
        // Ranks are those of the texts.
        let places: Vec<u32> = (0..ranked.len() as u32).collect();
        let rank = |row: &&TruthRow| {
            let place = ranked.iter().position(|text| **text == *row.caption)?;
            rank_of(place as u32, &places)
        };
        writer.push(Picture {
            row,
            url: url.to_owned(),
            ndcg5: mean_gain(right.iter().map(rank)),
            ranked: ranked.iter().map(|text| caption(text, is_right(text))).collect::<Result<_, _>>()?,
            right: right
                .iter()
                .map(|row| {
                    let mut found = caption(&row.caption, true)?;
                    if !row.language.is_empty() {
                        found.language = row.language.to_string();
                    }
                    Ok(found)
                })
                .collect::<Result<_, PipelineError>>()?,
            id: Some(id),
            rights: 0,
        })?;
        progress.add(1);
        Ok(())
    })?;
    if writer.briefs.is_empty() {
        return Err(internal("the submission has no rows"));
    }
    writer.finish(notes)
}
