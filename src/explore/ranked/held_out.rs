//! Ranks captions for the images held out from training.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Picture, PictureSet, RankedCaption, SetWriter, TOP_K, mean_gain};
use crate::explore::captions::{self, CaptionList};
use crate::explore::encode::Encoders;
use crate::explore::images::{ImageIndex, ImageRecord, read};
use crate::explore::jobs::Progress;
use crate::explore::opened::{Head, OpenRun};
use crate::pipeline::PipelineError;
use crate::pipeline::catalog::StoredClasses;
use crate::pipeline::device::linear_layer;
use crate::predict::metrics::rank_of;
use crate::train::HeadState;

/// Images that are ranked at once.
const BATCH_ROWS: usize = 256;
/// Upper bound on the ranked images: each takes about 200 bytes of memory.
const MAX_IMAGES: u64 = 100_000;
/// Upper bound on the vectors of the candidates, which are in memory three times while they are prepared.
const MAX_CANDIDATE_BYTES: u64 = 1 << 30;
/// Upper bound on the operations of a ranking: about a minute on two cores.
const MAX_OPERATIONS: u64 = 4_000_000_000_000;

/// Ranked captions of one image: positions among the candidates, and logits.
struct Ranked {
    row: u32,
    classes: Vec<u32>,
    logits: Vec<f32>,
}

/// Ranks the images.
pub(super) async fn rank(
    run: Arc<OpenRun>,
    encoders: Arc<Encoders>,
    images: Arc<ImageIndex>,
    progress: Progress,
) -> Result<PictureSet, PipelineError> {
    let (own, index) = (Arc::clone(&run), Arc::clone(&images));
    let (layer, numbers) = tokio::task::spawn_blocking(move || candidates(&own, &index)).await??;
    let all = images.file.rows();
    let cost = 2 * layer.classes as u64 * layer.dim as u64;
    let most = (MAX_OPERATIONS / cost.max(1)).clamp(1000, MAX_IMAGES).min(u64::from(all));
    progress.set_total(most);
    let chosen: Vec<u32> = (0..most).map(|place| (place * u64::from(all) / most.max(1)) as u32).collect();
    let is_classifier = matches!(run.head, Head::Classes(_));
    let top_k = TOP_K.min(layer.classes);
    let scorer = encoders.device().await?.load_scorer(layer).await?;
    let mut ranked = Vec::with_capacity(chosen.len());
    for rows in chosen.chunks(BATCH_ROWS) {
        let (index, own) = (Arc::clone(&images), rows.to_vec());
        let load = move || {
            let mut values = Vec::new();
            for row in own {
                // A classifier needs the feature itself, which has another length than its vector.
                let factor = if is_classifier { index.record(row)?.length } else { 1.0 };
                values.extend(index.file.vector(row).map_err(read)?.into_iter().map(|value| value * factor));
            }
            Ok::<_, PipelineError>(values)
        };
        let values = tokio::task::spawn_blocking(load).await??;
        let tops = scorer.top_k(values, rows.len(), top_k).await?;
        ranked.extend(rows.iter().zip(tops).map(|(row, top)| Ranked {
            row: *row,
            classes: top.classes,
            logits: top.logits,
        }));
        progress.add(rows.len() as u64);
    }
    scorer.unload().await?;
    let note = (most < u64::from(all)).then(|| format!("a sample of {most} of the {all} held-out images is ranked"));
    let write = move || write(&run, &images, &ranked, numbers.as_deref(), note.into_iter().collect());
    tokio::task::spawn_blocking(write).await?
}

/// Returns the layer that ranks captions, and the classes that its outputs stand for; `None` if they are all classes.
fn candidates(run: &OpenRun, images: &ImageIndex) -> Result<(Arc<HeadState>, Option<Vec<u32>>), PipelineError> {
    match &run.head {
        Head::Classes(head) => Ok((Arc::clone(head), None)),
        Head::Projection(head) => {
            let mut numbers = BTreeSet::new();
            for row in 0..images.file.rows() {
                numbers.extend(images.record(row)?.labels);
            }
            let numbers: Vec<u32> = numbers.into_iter().collect();
            let bytes = 3 * 4 * numbers.len() as u64 * head.text_mean().len().max(head.output()) as u64;
            if bytes > MAX_CANDIDATE_BYTES {
                return Err(PipelineError::Input(format!(
                    "the {} captions of the held-out images take {} of memory to rank, and the page takes {} at most; look at the test images",
                    numbers.len(),
                    bytesize::ByteSize(bytes),
                    bytesize::ByteSize(MAX_CANDIDATE_BYTES)
                )));
            }
            let is_classes = |list: &CaptionList| matches!(list, CaptionList::Set { is_classes: true, .. });
            let absent = || PipelineError::Input("the vectors of the training captions are not in the run".to_owned());
            let list = captions::lists(run)?.into_iter().find(is_classes).ok_or_else(absent)?;
            let vectors = head.map_captions(captions::read_vectors(run, &list, &numbers)?);
            let layer = linear_layer(vectors, vec![0.0; numbers.len()], head.output());
            Ok((Arc::new(layer), Some(numbers)))
        }
        Head::Paired => Err(PipelineError::Input("a run without training holds out no images".to_owned())),
    }
}

fn write(
    run: &OpenRun,
    images: &ImageIndex,
    ranked: &[Ranked],
    numbers: Option<&[u32]>,
    notes: Vec<String>,
) -> Result<PictureSet, PipelineError> {
    let class_of = |place: u32| numbers.map_or(place, |numbers| numbers[place as usize]);
    let classes = StoredClasses::open(&run.dir)?;
    let languages = classes.read_languages()?;
    let mut shown: BTreeSet<u32> =
        ranked.iter().flat_map(|image| &image.classes).map(|place| class_of(*place)).collect();
    for image in ranked {
        shown.extend(images.record(image.row)?.labels);
    }
    let shown: Vec<u32> = shown.into_iter().collect();
    let texts = classes.read_some_texts(&shown)?;
    let caption = |class: u32, score: Option<f32>, is_right: bool| {
        let text = shown.binary_search(&class).ok().and_then(|place| texts.get(place));
        let text = text.map_or_else(String::new, ToString::to_string);
        RankedCaption { text, language: languages.language(class).to_owned(), score, is_right }
    };
    let mut writer = SetWriter::create()?;
    for image in ranked {
        let ImageRecord { url, labels, .. } = images.record(image.row)?;
        let classes: Vec<u32> = image.classes.iter().map(|place| class_of(*place)).collect();
        let score = |class: u32| classes.iter().position(|other| *other == class).map(|place| image.logits[place]);
        writer.push(Picture {
            row: Some(image.row),
            url,
            id: None,
            ndcg5: mean_gain(labels.iter().map(|class| rank_of(*class, &classes))),
            ranked: classes.iter().map(|class| caption(*class, score(*class), labels.contains(class))).collect(),
            right: labels.iter().map(|class| caption(*class, score(*class), true)).collect(),
            rights: 0,
        })?;
    }
    writer.finish(notes)
}
