//! Pictures, captions and search of a run, for the page. Reads the run directory and the run's inputs, and never writes to
//! them.
//!
//! [`Explorer`] opens a run when it is first asked about it. Images and captions of the run are copied into
//! [`search`](mod@crate::search) files on scratch disk the first time somebody looks at them; building one is a background
//! job whose progress callers see. Models run on the CPU, so that the page never takes the GPU from a run.
//!
//! | part | does |
//! | --- | --- |
//! | `opened` | configuration and head of a run |
//! | `jobs` | background jobs: one at a time, with progress |
//! | `images` | images of a stream → vectors in the space that search compares |
//! | `captions` | lists of captions → vectors in the same space |
//! | `ranked` | held-out and test images with their ranked captions and scores |
//! | `encode` | a picture or a text → a query |
//! | `rows` | one row of the run's inputs |
//! | `source` | a picture as it was, from the run's inputs |
//!
//! Bounded: one picture is decoded at a time, one job builds at a time, results are pages. Vectors are on scratch disk.

mod captions;
mod encode;
mod images;
mod jobs;
mod opened;
mod ranked;
mod rows;
mod source;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::objects::Store;
use crate::pipeline::PipelineError;
use crate::run_dir::Directory;

use captions::{CaptionIndex, CaptionList};
use encode::Encoders;
use images::{ImageIndex, Stream};
use jobs::Jobs;
use opened::{Head, OpenRun};
use source::SourceReader;

pub use jobs::{Building, Built};
pub use ranked::{Filter, Order, Page, Picture, PictureSet, RankedCaption};
pub use rows::{InputRow, RowPart, RowPlace, TRAIN_STREAM, read_row};
pub use source::Rendition;

/// Time for which an opened run is used before the run directory is looked at again.
const RECHECK: Duration = Duration::from_secs(10);

/// Pictures, captions and search of one run.
#[derive(Clone)]
pub struct Explorer {
    dir: Directory,
    store: Store,
    opened: Arc<Mutex<Option<Opened>>>,
    /// Held while the run is opened, so that requests at the same time open it once.
    opening: Arc<tokio::sync::Mutex<()>>,
}

struct Opened {
    state: Arc<State>,
    checked: Instant,
}

/// Everything about one state of a run directory. A run that ends, or starts again, gets a new one.
struct State {
    run: Arc<OpenRun>,
    /// Names the state of the run directory.
    stamp: String,
    encoders: Arc<Encoders>,
    source: SourceReader,
    images: Jobs<ImageIndex>,
    captions: Jobs<CaptionIndex>,
    pictures: Jobs<PictureSet>,
}

/// Lists and sets of images of a run that can be seen and searched.
#[derive(Debug, Clone, Serialize)]
pub struct Contents {
    /// `classes`, `text` or `paired`.
    pub head: &'static str,
    /// Update of the checkpoint in use; `None` for a paired head.
    pub step: Option<u64>,
    /// True if a text can be searched for.
    pub texts: bool,
    /// Lists of captions.
    pub lists: Vec<Entry>,
    /// Sets of images to search.
    pub images: Vec<Entry>,
    /// Sets of images with ranked captions.
    pub pictures: Vec<Entry>,
}

/// A list of captions or a set of images.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct Entry {
    /// Name in queries.
    pub name: String,
    /// Description for people.
    pub title: String,
    /// Captions or images, as far as they are known without counting.
    pub rows: Option<u64>,
}

/// Query of a search.
pub enum Wanted {
    /// Encoded bytes of a picture.
    Picture(Vec<u8>),
    /// A text in any language.
    Text(String),
    /// An image of a set, by its row.
    Image(String, u32),
    /// A caption of a list, by its row.
    Caption(String, u32),
}

/// Settings of a search.
#[derive(Debug, Clone, Default)]
pub struct SearchSettings {
    /// List of captions to rank; `None` for none.
    pub list: Option<String>,
    /// Set of images to rank; `None` for none.
    pub images: Option<String>,
    /// Results of each kind.
    pub limit: usize,
    /// True to rank captions in each language on its own.
    pub by_language: bool,
}

/// Result of a search.
#[derive(Debug, Default, Serialize)]
pub struct Found {
    /// Best captions.
    pub captions: Vec<FoundCaption>,
    /// Best captions of each language.
    pub languages: BTreeMap<String, Vec<FoundCaption>>,
    /// Nearest images.
    pub images: Vec<FoundImage>,
    /// Seconds that the comparison took.
    pub seconds: f64,
}

/// A ranked caption.
#[derive(Debug, Serialize)]
pub struct FoundCaption {
    /// Row in its list.
    pub row: u32,
    /// The caption.
    pub text: String,
    /// Its language; empty if it is not known.
    pub language: String,
    /// Cosine similarity, or the logit of a classifier.
    pub score: f32,
}

/// A ranked image.
#[derive(Debug, Serialize)]
pub struct FoundImage {
    /// Row in its set.
    pub row: u32,
    /// Its URL.
    pub url: String,
    /// Cosine similarity.
    pub score: f32,
}

impl fmt::Debug for Explorer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Explorer").field("dir", &self.dir.display("")).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the folder of the search files.
fn scratch() -> PathBuf {
    std::env::temp_dir()
}

fn internal(what: &str) -> PipelineError {
    PipelineError::Internal(what.to_owned())
}

impl Explorer {
    /// Creates an explorer of a run directory. Nothing is read.
    pub fn new(dir: Directory, store: Store) -> Self {
        Self { dir, store, opened: Arc::default(), opening: Arc::default() }
    }

    /// Returns the state that was checked a moment ago.
    fn recent(&self) -> Option<Arc<State>> {
        let opened = lock(&self.opened);
        opened.as_ref().filter(|opened| opened.checked.elapsed() < RECHECK).map(|opened| Arc::clone(&opened.state))
    }

    /// Returns the present state of the run directory.
    async fn state(&self) -> Result<Arc<State>, PipelineError> {
        if let Some(state) = self.recent() {
            return Ok(state);
        }
        let _opening = self.opening.lock().await;
        if let Some(state) = self.recent() {
            return Ok(state);
        }
        let known = lock(&self.opened).as_ref().map(|opened| Arc::clone(&opened.state));
        let (dir, store) = (self.dir.clone(), self.store.clone());
        let state = tokio::task::spawn_blocking(move || {
            let stamp = opened::stamp(&dir)?;
            if let Some(known) = known.filter(|known| known.stamp == stamp) {
                return Ok(known);
            }
            let run = Arc::new(OpenRun::open(dir, store)?);
            Ok::<_, PipelineError>(Arc::new(State {
                encoders: Arc::new(Encoders::new(Arc::clone(&run))),
                source: SourceReader::new(Arc::clone(&run)),
                run,
                stamp,
                images: Jobs::default(),
                captions: Jobs::default(),
                pictures: Jobs::default(),
            }))
        })
        .await??;
        *lock(&self.opened) = Some(Opened { state: Arc::clone(&state), checked: Instant::now() });
        Ok(state)
    }

    /// Lists what can be seen and searched.
    ///
    /// # Errors
    /// When the run has no head yet, or its directory cannot be read.
    pub async fn contents(&self) -> Result<Contents, PipelineError> {
        let state = self.state().await?;
        tokio::task::spawn_blocking(move || {
            let run = &state.run;
            let lists = captions::lists(run)?.into_iter().map(|list| list.entry()).collect();
            let streams = images::streams(run)?;
            let entry = |stream: &Stream| stream.entry();
            Ok(Contents {
                head: run.kind(),
                step: run.step,
                texts: !matches!(run.head, Head::Classes(_)),
                lists,
                images: streams.iter().map(entry).collect(),
                pictures: streams.iter().filter(|stream| **stream != Stream::Train).map(entry).collect(),
            })
        })
        .await?
    }

    /// Returns the ranked images of a set, or the progress of the job that ranks them.
    ///
    /// # Errors
    /// When there is no such set, or ranking fails.
    pub async fn pictures(&self, name: &str) -> Result<Built<PictureSet>, PipelineError> {
        let state = self.state().await?;
        let stream = Stream::parse(&state.run, name)?;
        let images = match self.images(&state, stream.clone()).await? {
            Built::Ready(images) => images,
            Built::Building(progress) => return Ok(Built::Building(progress)),
        };
        let (run, encoders) = (Arc::clone(&state.run), Arc::clone(&state.encoders));
        let build = move |progress| async move { ranked::rank(run, encoders, stream, images, progress).await };
        state.pictures.get(name, "ranking captions of each image", build).await
    }

    async fn images(&self, state: &Arc<State>, stream: Stream) -> Result<Built<ImageIndex>, PipelineError> {
        let name = stream.name();
        let (run, encoders) = (Arc::clone(&state.run), Arc::clone(&state.encoders));
        let build = move |progress| async move { images::build(run, encoders, stream, progress).await };
        state.images.get(&name, "reading the features of the images", build).await
    }

    async fn captions(&self, state: &Arc<State>, list: CaptionList) -> Result<Built<CaptionIndex>, PipelineError> {
        let name = list.name().to_owned();
        let run = Arc::clone(&state.run);
        let build = move |progress| async move {
            tokio::task::spawn_blocking(move || captions::build(&run, &list, &progress)).await?
        };
        state.captions.get(&name, "reading the vectors of the captions", build).await
    }

    /// Searches captions and images for something like a picture, a text, an image or a caption.
    ///
    /// # Errors
    /// When there is no such list, set or row, the picture cannot be decoded, or the head cannot compare.
    pub async fn search(&self, wanted: Wanted, settings: SearchSettings) -> Result<Built<Found>, PipelineError> {
        let state = self.state().await?;
        let (mut list, mut images) = (None, None);
        for (name, into) in [(&settings.list, true), (&settings.images, false)] {
            let Some(name) = name else { continue };
            if into {
                let (run, name) = (Arc::clone(&state.run), name.clone());
                let found = tokio::task::spawn_blocking(move || captions::find(&run, &name)).await??;
                match self.captions(&state, found).await? {
                    Built::Ready(index) => list = Some(index),
                    Built::Building(progress) => return Ok(Built::Building(progress)),
                }
            } else {
                match self.images(&state, Stream::parse(&state.run, name)?).await? {
                    Built::Ready(index) => images = Some(index),
                    Built::Building(progress) => return Ok(Built::Building(progress)),
                }
            }
        }
        let query = match wanted {
            Wanted::Picture(bytes) => state.encoders.encode_picture(bytes).await?,
            Wanted::Text(text) => state.encoders.encode_text(&text).await?,
            Wanted::Image(set, row) => match self.images(&state, Stream::parse(&state.run, &set)?).await? {
                Built::Ready(index) => index.query(&state.run, row)?,
                Built::Building(progress) => return Ok(Built::Building(progress)),
            },
            Wanted::Caption(name, row) => {
                let run = Arc::clone(&state.run);
                let found = tokio::task::spawn_blocking(move || captions::find(&run, &name)).await??;
                match self.captions(&state, found).await? {
                    Built::Ready(index) => index.query(&state.run, row)?,
                    Built::Building(progress) => return Ok(Built::Building(progress)),
                }
            }
        };
        let compare = move || {
            let (mut found, started) = (Found::default(), Instant::now());
            if let Some(list) = list {
                let query = query.captions.as_deref().ok_or_else(|| internal("the query compares no captions"))?;
                if settings.by_language {
                    found.languages = list.rank_by_language(query, settings.limit)?;
                } else {
                    found.captions = list.rank(query, settings.limit)?;
                }
            }
            if let Some(images) = images {
                found.images = images.rank(&query.images, settings.limit)?;
            }
            found.seconds = started.elapsed().as_secs_f64();
            Ok::<_, PipelineError>(Built::Ready(Arc::new(found)))
        };
        tokio::task::spawn_blocking(compare).await?
    }

    /// Returns the content type and bytes of a picture of a set.
    ///
    /// # Errors
    /// When the set is not built yet, has no such row, or the picture cannot be read.
    pub async fn picture(
        &self,
        set: &str,
        row: u32,
        rendition: Rendition,
    ) -> Result<(&'static str, Vec<u8>), PipelineError> {
        let state = self.state().await?;
        let stream = Stream::parse(&state.run, set)?;
        let Built::Ready(index) = self.images(&state, stream.clone()).await? else {
            return Err(PipelineError::Input("the images are still being read; try again soon".to_owned()));
        };
        state.source.render(&state.encoders, stream, &index, row, rendition).await
    }

    /// Reads a row of the run's inputs.
    ///
    /// # Errors
    /// When the run has no such row, or its inputs cannot be read or have changed.
    pub async fn input_row(&self, place: &RowPlace) -> Result<InputRow, PipelineError> {
        read_row(&self.dir, &self.store, place).await
    }

    /// Returns the largest picture that a search accepts, in bytes: `preprocess.max_encoded`.
    ///
    /// # Errors
    /// When the run cannot be opened.
    pub async fn max_picture_bytes(&self) -> Result<u64, PipelineError> {
        Ok(self.state().await?.run.config.preprocess().max_encoded.0)
    }
}
