//! Prediction by a text head: any captions, ranked by pixels, file names and, where asked for, another run's head of classes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::catalog::{self, Own};
use super::checkpoints::Picked;
use super::evidence::{Candidates, Images, Kind, Mix, Question, Rankings, Side, by_language, groups, queries};
use super::feature_store::{FeaturePlacement, FeatureStore, SampleSpec as Rows};
use super::prediction::{self, Asked, Queries, Ranking};
use super::report::{EvidenceReport, TextReport};
use super::text_training::HeldOut;
use super::texts::{self, TextSet, TextStore};
use super::worker::{Device, DeviceWorker};
use super::{Journal, Layout, PipelineError, Run, Stage, checkpoints, generation, scratch_path};
use crate::catalog::{ClassSource, Classes, Match, file_name_words, url_hash};
use crate::chunk::features::read_row_meta;
use crate::config::raw::RawPredict;
use crate::config::value::{Correction, Pick, Precision, Targets as Kinds};
use crate::config::{ConfigError, Problem};
use crate::objects::Store;
use crate::predict::evaluate::{Truth, read_truth};
use crate::run_dir::Directory;
use crate::train::text::{TextHead, centre};
use crate::train::validation::is_validation;

/// How much a name counts where no image is held out to choose it on.
const NAMES_WEIGHT: f32 = 0.5;
/// And a head of classes.
const CLASSES_WEIGHT: f32 = 1.0;
/// Names from which on their own mean is what they have in common, and not that of captions: names are mostly in one language.
const NAMES_WITH_A_MEAN: usize = 100;
/// Images ranked at a time by their names alone.
const NAMED_AT_ONCE: usize = 1024;
/// Says where the captions came from that no file lists.
const OWN_CLASSES: &str = "the classes of the run";

/// What is ranked, known before anything runs.
pub(super) struct Listed {
    pub(super) captions: Arc<Classes>,
    source: String,
}

/// Names of images' files.
struct Names {
    /// Distinct names.
    all: Arc<Classes>,
    /// The name of each image by the hash of its URL.
    of: HashMap<u64, u32>,
}

impl Names {
    fn new() -> Self {
        Self { all: Arc::new(Classes::new(ClassSource::List, Match::Exact)), of: HashMap::new() }
    }

    fn add(&mut self, url: &str) -> Result<(), PipelineError> {
        let name = file_name_words(url);
        let all = Arc::get_mut(&mut self.all)
            .ok_or_else(|| PipelineError::Internal("names of files are in use".to_owned()))?;
        let refused = |error: crate::catalog::CatalogError| PipelineError::Input(error.to_string());
        if let Some(group) = all.add(&name).map_err(refused)? {
            self.of.insert(url_hash(url), group.first_class());
        }
        Ok(())
    }
}

/// The vectors of names, centred.
pub(super) struct NameVectors {
    names: Names,
    store: TextStore,
    mean: Vec<f32>,
}

impl NameVectors {
    /// The vectors of images by the hashes of their URLs, zeros where a name says nothing: `[images, dim]`. Blocks.
    pub(super) fn of(&self, urls: &[u64]) -> Result<Vec<f32>, PipelineError> {
        let dim = self.mean.len();
        let known: Vec<u32> = urls.iter().filter_map(|url| self.names.of.get(url).copied()).collect();
        let mut vectors = self.store.vectors(&known)?;
        centre(&mut vectors, &self.mean);
        let mut all = vec![0.0; urls.len() * dim];
        let places = urls.iter().enumerate().filter(|(_, url)| self.names.of.contains_key(url)).map(|(place, _)| place);
        for (place, vector) in places.zip(vectors.chunks_exact(dim.max(1))) {
            all[place * dim..(place + 1) * dim].copy_from_slice(vector);
        }
        Ok(all)
    }

    fn knows(&self, url: u64) -> bool {
        self.names.of.contains_key(&url)
    }
}

/// Another run's head of classes, for captions that are classes there.
pub(super) struct Blended {
    weight: Vec<f32>,
    bias: Vec<f32>,
    dim: usize,
    class_of: HashMap<Box<str>, u32>,
}

impl Blended {
    /// Its weights and bias for captions; zero for those that it does not have.
    fn rows<'a>(&self, captions: impl ExactSizeIterator<Item = &'a str>) -> (Vec<f32>, Vec<f32>) {
        let mut rows = (vec![0.0; captions.len() * self.dim], vec![0.0; captions.len()]);
        for (place, caption) in captions.enumerate() {
            if let Some(class) = self.class_of.get(caption) {
                let class = *class as usize;
                rows.0[place * self.dim..(place + 1) * self.dim]
                    .copy_from_slice(&self.weight[class * self.dim..(class + 1) * self.dim]);
                rows.1[place] = self.bias[class];
            }
        }
        rows
    }
}

/// What held-out images are, in the run's own features.
struct HeldOutSide {
    images: HeldOut,
    /// Captions of training images.
    seen: HashSet<u32>,
}

/// A hash of everything that a map and the vectors of names are.
fn key_of(head: &TextHead, names: Option<&NameVectors>) -> Arc<str> {
    let mut hasher = blake3::Hasher::new();
    let parameters = head.parameters.iter().map(|parameter| &parameter.values);
    let statistics = [&head.feature_mean, &head.feature_std, &head.text_mean];
    for values in parameters.chain(statistics).chain(names.map(|names| &names.mean)) {
        for value in values {
            hasher.update(&value.to_le_bytes());
        }
    }
    if let Some(names) = names {
        for name in names.names.all.texts() {
            hasher.update(name.as_bytes()).update(&[0]);
        }
    }
    hasher.finalize().to_hex()[..16].into()
}

impl Run {
    /// The text encoder of a text head.
    pub(super) fn encoder(&self) -> Result<&texts::Encoder, PipelineError> {
        let absent = || PipelineError::Internal("a stage needs a text encoder that the plan has not".to_owned());
        self.encoder.as_ref().ok_or_else(absent)
    }

    /// The keys of the text stage, with the encoder's files for its name.
    pub(super) fn text_keys(&self) -> Result<crate::config::StageKeys, PipelineError> {
        let mut keys = self.plan.keys(Stage::Text);
        keys.remove("text.encoder");
        keys.insert(generation::ENCODER_FILES.to_owned(), self.encoder()?.fingerprint.clone());
        Ok(keys)
    }

    /// Makes the vectors of captions that are not there yet.
    pub(super) async fn embed(
        &self,
        name: &str,
        captions: Arc<Classes>,
        device: &Arc<Device>,
    ) -> Result<TextSet, PipelineError> {
        let scratch = scratch_path(&self.plan);
        texts::embed(name, captions, self.encoder()?, &self.directory, &scratch, &self.machine, device).await
    }

    /// Refuses captions whose vectors fit neither memory nor scratch disk.
    pub(super) fn enough_for_vectors(&self, captions: usize) -> Result<(), PipelineError> {
        let width = if self.encoder()?.precision == Precision::Bf16 { 2 } else { 4 };
        let bytes = captions as u64 * self.encoder()?.checkpoint.dim() as u64 * width;
        if bytes <= self.plan.machine().limits.memory.0 / 4 {
            return Ok(());
        }
        self.enough_disk(bytes, "the vectors of the captions, a quarter of `limits.memory` being less,")
    }

    /// Refuses a list whose vectors are more than the memory limit: it is ranked in memory.
    pub(super) fn enough_memory(&self, captions: usize) -> Result<(), PipelineError> {
        let bytes = 4 * captions as u64 * self.encoder()?.checkpoint.dim() as u64;
        let limit = self.plan.machine().limits.memory;
        if bytes <= limit.0 {
            return Ok(());
        }
        let what = format!(
            "`{limit}` is less than the {} that the vectors of the {captions} captions to rank take: raise it, or rank a shorter list",
            bytesize::ByteSize(bytes)
        );
        Err(ConfigError(vec![Problem { key: "limits.memory".to_owned(), what }]).into())
    }

    /// Refuses a map that does not lead from these features to this encoder's space.
    pub(super) fn fitting(&self, head: &TextHead) -> Result<(), PipelineError> {
        if (head.input, head.output) == (self.backbone()?.shape.dim, self.encoder()?.checkpoint.dim()) {
            return Ok(());
        }
        Err(PipelineError::Generation(
            "the map in the checkpoint does not lead from these features to this text encoder; recompute with --from train"
                .to_owned(),
        ))
    }

    /// The vectors of a set by their numbers.
    pub(super) async fn text_store(&self, set: TextSet) -> Result<TextStore, PipelineError> {
        let scratch = scratch_path(&self.plan);
        let memory = self.plan.machine().limits.memory.0 / 4;
        tokio::task::spawn_blocking(move || TextStore::open(&set, memory, &scratch)).await?
    }

    /// A map goes with the encoder into whose space it leads.
    pub(super) fn check_same_encoder(&self) -> Result<(), PipelineError> {
        let Some(record) = self.generations.recorded(Stage::Text.as_str()) else { return Ok(()) };
        let now = self.text_keys()?;
        let differs = |(key, value): &(&String, &String)| now.get(*key) != Some(value);
        match record.keys.iter().find(differs) {
            Some((key, value)) => Err(PipelineError::Generation(format!(
                "the head in `{}` was trained with another text encoder: `{key}` was {value}, and is {} now; set it back",
                self.directory.display(""),
                now.get(key).map_or("absent", String::as_str)
            ))),
            None => Ok(()),
        }
    }

    /// Reads the list that is to be ranked; `None` where the run's classes are.
    pub(super) async fn listed(&self, settings: &RawPredict) -> Result<Option<Listed>, PipelineError> {
        let of_run = self.plan.pipeline().captions.as_ref().map_or("", |captions| captions.list.as_str());
        let name = if settings.captions.is_empty() { of_run } else { &settings.captions };
        if name.is_empty() {
            return Ok(None);
        }
        let mut captions = Classes::new(ClassSource::List, Match::Exact);
        catalog::read_list(&self.machine.store, name, &mut captions).await?;
        captions.shrink();
        Ok(Some(Listed { captions: Arc::new(captions), source: Store::redact(name).to_owned() }))
    }

    /// Another run's head of classes, if its features are of the same kind.
    pub(super) async fn blended(&self, settings: &RawPredict) -> Result<Option<Blended>, PipelineError> {
        if settings.blend.is_empty() {
            return Ok(None);
        }
        let shown = Store::redact(&settings.blend).to_owned();
        let (store, name) = (self.machine.store.clone(), settings.blend.clone());
        let other = tokio::task::spawn_blocking(move || Directory::read_only(&store, &name)).await??;
        let refused = |what: &str| PipelineError::Input(format!("`{shown}` (`predict.blend`): {what}"));
        let file = generation::read(&other)?.ok_or_else(|| refused("there is no run in it"))?;
        let keys = &file.stages.get(Stage::Stream.as_str()).ok_or_else(|| refused("it has no features"))?.keys;
        let own = self.stream_keys(Stage::Predict, "predict.images", &[]).await?;
        let of_features = |key: &&String| key.starts_with("model.") || key.starts_with("preprocess");
        if let Some(key) = keys.keys().filter(of_features).find(|key| keys.get(*key) != own.get(*key)) {
            return Err(refused(&format!("its head was trained on other features than this run's: `{key}` differs")));
        }
        // Else what is held out here was trained on there, and would be trusted too much.
        let held_out = |record: Option<&generation::StageRecord>| {
            let value = |key: &str| record.and_then(|record| record.keys.get(key).cloned());
            (
                value("run.seed"),
                value("train.validation_fraction").and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0),
            )
        };
        let own_train = self.plan.runs(Stage::Train).then(|| self.plan.keys(Stage::Train));
        let own_record = own_train.map(|keys| generation::StageRecord { keys, ..generation::StageRecord::default() });
        let mine = held_out(own_record.as_ref().or(self.generations.recorded(Stage::Train.as_str())));
        let theirs = held_out(file.stages.get(Stage::Train.as_str()));
        if mine.1 > 0.0 && (mine.0 != theirs.0 || theirs.1 < mine.1) {
            return Err(refused(
                "images that are held out from training here were trained on there: give both runs one `run.seed`, and it no \
                 smaller a `train.validation_fraction`",
            ));
        }
        let picked = checkpoints::pick(&other, Pick::Best)?.ok_or_else(|| refused("it has no checkpoint"))?;
        let head = picked.head().map_err(|error| refused(&super::chain(&error)))?;
        let captions = catalog::load_captions(&other)?;
        if captions.len() != head.classes {
            return Err(refused("its classes are not those of its head"));
        }
        let class_of = captions.into_iter().zip(0..).map(|(caption, class)| (caption.text, class)).collect();
        Ok(Some(Blended { weight: head.weight, bias: head.bias, dim: head.dim, class_of }))
    }

    /// Images of the run that were held out from training; `None` where there are none.
    fn held_out(
        &self,
        vectors_of: impl FnOnce(&[u32]) -> Result<Vec<f32>, PipelineError>,
    ) -> Result<Option<HeldOutSide>, PipelineError> {
        let Some(record) = self.generations.recorded(Stage::Train.as_str()) else { return Ok(None) };
        let value = |key: &str| record.keys.get(key).map(String::as_str).unwrap_or_default();
        let fraction: f64 = value("train.validation_fraction").parse().unwrap_or(0.0);
        let seed = value("run.seed").parse::<u64>().ok();
        let Some(seed) = seed.filter(|_| fraction > 0.0) else { return Ok(None) };
        let journal = Journal::read(self.directory.clone(), Layout::train("features"), None)?;
        let shape = self.backbone()?.shape;
        let read = || {
            let layout = journal.layout();
            let names: Vec<String> = journal
                .entries()
                .iter()
                .filter(|(_, entry)| entry.tally.kept > 0)
                .map(|(id, _)| layout.chunk(*id))
                .collect();
            let (mut rows, mut seen) = (Vec::with_capacity(names.len()), HashSet::new());
            for names in names.chunks(32) {
                for (name, copy) in names.iter().zip(self.directory.fetch_all(names)?) {
                    journal.verify(name, &copy)?;
                    let heads = read_row_meta(&copy)?;
                    let mut held_out = 0;
                    for row in (0..heads.len()).filter(|row| heads.view(*row) <= 1) {
                        if is_validation(heads.url(row), seed, fraction) {
                            held_out += 1;
                        } else {
                            seen.extend(heads.labels(row).iter().copied());
                        }
                    }
                    rows.push(held_out);
                }
            }
            let wanted = Rows { seed, fraction, dim: shape.dim, targets: Kinds::Pairs, contrast: true, copies: None };
            let store = FeatureStore::new(self.directory.clone(), names, wanted, FeaturePlacement::Files);
            let images = HeldOut::read(&store, vectors_of, &rows, seed)?;
            Ok::<_, PipelineError>((images.images() > 0).then(|| HeldOutSide { images, seen }))
        };
        tokio::task::block_in_place(read)
    }

    /// Names of the test images, by the ids file, and of the images held out.
    async fn names(
        &self,
        settings: &RawPredict,
        head: &TextHead,
        held_out: Option<&HeldOutSide>,
        device: &Arc<Device>,
    ) -> Result<Option<NameVectors>, PipelineError> {
        if !settings.file_names {
            return Ok(None);
        }
        let mut names = Names::new();
        if let Some(side) = held_out {
            side.images.urls.iter().try_for_each(|url| names.add(url))?;
        }
        prediction::each_id(&self.machine.store, &settings.ids, |id| names.add(id.image_url)).await?;
        let set = self.embed("file names", Arc::clone(&names.all), device).await?;
        let store = self.text_store(set).await?;
        let many = names.all.len() >= NAMES_WITH_A_MEAN;
        let mean = if many { store.mean().to_vec() } else { head.text_mean.clone() };
        Ok(Some(NameVectors { names, store, mean }))
    }

    /// Ranks captions for the test images whose features are in `journal`.
    #[expect(clippy::too_many_arguments, reason = "each is one thing that the ranking needs, from another owner")]
    pub(super) async fn rank_text(
        &mut self,
        settings: &RawPredict,
        picked: &Picked,
        journal: &Journal,
        asked: &Asked,
        listed: &Listed,
        own: &Own,
        device: &Arc<Device>,
    ) -> Result<(Ranking, TextReport), PipelineError> {
        let head = picked.text_head()?;
        self.fitting(&head)?;
        let dim = head.output;
        let blended = self.blended(settings).await?;
        let classes = Arc::clone(&own.classes);
        // Only the vectors of what is held out are read of them.
        let own_set = self.embed("captions", Arc::clone(&classes), device).await?;
        let vectors_of = |captions: &[u32]| {
            let mut vectors = own_set.some(captions)?;
            head.centre(&mut vectors);
            Ok(vectors)
        };
        let held_out = self.held_out(vectors_of)?;
        let names = Arc::new(self.names(settings, &head, held_out.as_ref(), device).await?);
        let set = self.embed("captions to rank", Arc::clone(&listed.captions), device).await?;
        let mut vectors = tokio::task::spawn_blocking(move || set.all()).await??;
        head.centre(&mut vectors);
        let class_rows =
            |captions: &mut dyn ExactSizeIterator<Item = &str>| blended.as_ref().map(|other| other.rows(captions));
        let candidates =
            Candidates { vectors, dim, scale: head.scale(), classes: class_rows(&mut listed.captions.texts()) };
        let loaded = head.clone();
        device.call(move |worker| worker.load_projector(&loaded)).await?;
        let mut report = TextReport {
            source: listed.source.clone(),
            captions: listed.captions.len() as u64,
            correction: settings.correction.to_string(),
            ..TextReport::default()
        };
        let mut mix = Mix {
            names: if names.is_some() { NAMES_WEIGHT } else { 0.0 },
            classes: if blended.is_some() { CLASSES_WEIGHT } else { 0.0 },
        };
        if let Some(side) = &held_out {
            let images = &side.images;
            let text = |place: &u32| classes.text(*place).unwrap_or_default();
            let theirs = Candidates {
                vectors: images.vectors.clone(),
                dim,
                scale: head.scale(),
                classes: class_rows(&mut images.captions.iter().map(text)),
            };
            let side =
                self.held_out_side(side, &theirs, names.as_ref().as_ref(), own, settings.correction, device).await?;
            mix = side.choose(device).await?;
            let rankings = side.rankings(device, mix).await?;
            report.held_out = Some(side.report(device, mix, &rankings).await?);
            self.examples(&side, images, own, mix, &rankings)?;
        } else if names.is_some() || blended.is_some() {
            self.report.notes.push(
                "no image is held out from training, so the weights of file names and of the other run's head are not chosen \
                 but fixed"
                    .to_owned(),
            );
        }
        report.names_weight = names.is_some().then_some(mix.names);
        report.classes_weight = blended.is_some().then_some(mix.classes);
        let kinds: &[Kind] = match (names.is_some(), settings.truth.is_empty()) {
            (false, _) => &[Kind::Pixels],
            (true, true) => &[Kind::Both],
            (true, false) => &[Kind::Pixels, Kind::Names, Kind::Both],
        };
        let mut rankings = Vec::new();
        for kind in kinds {
            let (names, key) = (Arc::clone(&names), key_of(&head, names.as_ref().as_ref()));
            let queries = Queries::Text { names, kind: *kind, mix, dim, key };
            rankings.push((*kind, self.rank_by(settings, journal, asked, &candidates, queries, device).await?));
        }
        device.tell(DeviceWorker::unload_projector).await?;
        if !settings.truth.is_empty() {
            report.test = Some(self.test_report(settings, asked, listed, own, held_out.as_ref(), &rankings).await?);
        }
        let (_, ranking) = rankings.pop().ok_or_else(|| PipelineError::Internal("nothing was ranked".to_owned()))?;
        Ok((ranking, report))
    }

    /// BytePermit-out images with everything that ranks for them.
    async fn held_out_side<'a>(
        &self,
        side: &HeldOutSide,
        candidates: &'a Candidates,
        names: Option<&NameVectors>,
        own: &Own,
        correction: Correction,
        device: &Arc<Device>,
    ) -> Result<Side<'a>, PipelineError> {
        let images = &side.images;
        let (features, count) = (images.features.clone(), images.images());
        let pixels = device.call(move |worker| worker.project(&features, count)).await?;
        let urls: Vec<u64> = images.urls.iter().map(|url| url_hash(url)).collect();
        let names = match names {
            Some(names) => Some(tokio::task::block_in_place(|| names.of(&urls))?),
            None => None,
        };
        let features = candidates.classes.as_ref().map(|_| images.features.clone());
        let languages = own.languages.names().to_vec();
        let mut questions = Vec::new();
        for (image, places) in images.captions_of.iter() {
            for place in places {
                let class = images.captions[*place as usize];
                let (language, seen) = (own.languages.code(class), side.seen.contains(&class));
                questions.push(Question { image, caption: Some(*place), language, seen });
            }
        }
        Ok(Side { images: Images { pixels, names, features }, candidates, questions, languages, correction })
    }

    /// Ranks for all test images by one kind of evidence.
    async fn rank_by(
        &self,
        settings: &RawPredict,
        journal: &Journal,
        asked: &Asked,
        candidates: &Candidates,
        queries: Queries,
        device: &Arc<Device>,
    ) -> Result<Ranking, PipelineError> {
        let Queries::Text { names, kind, mix, .. } = &queries else {
            return Err(PipelineError::Internal("queries of another kind".to_owned()));
        };
        let (names, kind, mix, top_k) = (Arc::clone(names), *kind, *mix, settings.top_k as usize);
        let word = match kind {
            Kind::Pixels => "pixels",
            Kind::Names => "file names",
            Kind::Both => "pixels and file names",
        };
        let plain = candidates.head(kind, mix);
        let (mut head, bias) =
            prediction::correction(journal, plain, settings.correction, &queries, device, &self.machine).await?;
        add_to(&mut head.bias, bias.as_deref());
        let stage_progress = self.machine.registry.stage(format!("rank by {word}"), "images", 0);
        let kept = scratch_path(&self.plan).join(format!("{}-{}.ranks", Self::stem(settings), word.replace(' ', "-")));
        let stop = &self.machine.stop;
        let mut ranking =
            prediction::rank(journal, head, &asked.urls, top_k, kept, device, &stage_progress, stop, &queries).await?;
        self.machine.events.finished(&stage_progress);
        let Some(names) = names.as_ref().as_ref().filter(|_| kind != Kind::Pixels) else { return Ok(ranking) };
        // An image without features may have a name.
        let nameless = |image: &usize| ranking.of(*image).is_none() && names.knows(asked.urls.hash_at(*image));
        let images: Vec<usize> = (0..asked.urls.len()).filter(nameless).collect();
        if !images.is_empty() {
            let mut head = candidates.head(kind, mix);
            add_to(&mut head.bias, bias.as_deref());
            device.call(move |worker| worker.load_scorer(&head)).await?;
            for images in images.chunks(NAMED_AT_ONCE) {
                let urls: Vec<u64> = images.iter().map(|image| asked.urls.hash_at(*image)).collect();
                let vectors = tokio::task::block_in_place(|| names.of(&urls))?;
                let width = candidates.classes.as_ref().map(|both| both.0.len() / both.1.len().max(1));
                let features = width.map(|width| vec![0.0; images.len() * width]);
                let rows = queries_of(kind, mix, candidates.dim, &vectors, features.as_deref());
                let count = images.len();
                let tops = device.call(move |worker| worker.top_k(&rows, count, top_k)).await?;
                images.iter().zip(tops).for_each(|(image, top)| ranking.set(*image, &top.classes));
            }
            device.tell(DeviceWorker::unload_scorer).await?;
        }
        Ok(ranking)
    }

    /// Scores of the test images by evidence, and by language where the truth or the run's captions tell it.
    async fn test_report(
        &self,
        settings: &RawPredict,
        asked: &Asked,
        listed: &Listed,
        own: &Own,
        held_out: Option<&HeldOutSide>,
        rankings: &[(Kind, Ranking)],
    ) -> Result<EvidenceReport, PipelineError> {
        let truth = self.machine.store.read(&settings.truth, prediction::MAX_TRUTH_BYTES).await?;
        let truth = read_truth(&*truth).map_err(|error| PipelineError::Input(super::chain(&error)))?;
        let by_id: HashMap<&str, Vec<&Truth>> = truth.iter().fold(HashMap::new(), |mut by_id, row| {
            by_id.entry(&*row.id).or_insert_with(Vec::new).push(row);
            by_id
        });
        let (mut questions, mut languages) = (Vec::new(), Vec::<String>::new());
        prediction::each_id(&self.machine.store, &settings.ids, |id| {
            let Some(image) = asked.urls.position(url_hash(id.image_url)) else { return Ok(()) };
            for row in by_id.get(id.id).into_iter().flatten() {
                let class = own.classes.classes_of(&row.caption).next();
                let told = if row.language.is_empty() {
                    class.map_or("", |class| own.languages.language(class))
                } else {
                    &row.language
                };
                let language = (!told.is_empty()).then(|| {
                    languages.iter().position(|name| name == told).unwrap_or_else(|| {
                        languages.push(told.to_owned());
                        languages.len() - 1
                    })
                });
                let seen = class.is_some_and(|class| match held_out {
                    Some(side) => side.seen.contains(&class),
                    None => own.images.get(class as usize).is_some_and(|images| *images > 0),
                });
                let caption = listed.captions.classes_of(&row.caption).next();
                questions.push(Question { image, caption, language, seen });
            }
            Ok(())
        })
        .await?;
        let of_kind = |(kind, ranking): &(Kind, Ranking)| {
            let of_image = |image: usize| ranking.of(image).map_or_else(Vec::new, <[u32]>::to_vec);
            (*kind, (0..asked.urls.len()).map(of_image).collect())
        };
        let rankings: Rankings = rankings.iter().map(of_kind).collect();
        let captions = listed.captions.len();
        Ok(EvidenceReport {
            images: asked.urls.len() as u64,
            captions: captions as u64,
            groups: groups(&questions, captions, &rankings),
            by_language: by_language(&questions, &languages, captions, &rankings),
        })
    }

    /// What is ranked where no list is.
    pub(super) fn own_listed(own: &Own) -> Listed {
        Listed { captions: Arc::clone(&own.classes), source: OWN_CLASSES.to_owned() }
    }
}

fn add_to(bias: &mut [f32], more: Option<&[f32]>) {
    bias.iter_mut().zip(more.into_iter().flatten()).for_each(|(bias, more)| *bias += more);
}

/// Rows of images that have a name alone.
fn queries_of(kind: Kind, mix: Mix, dim: usize, names: &[f32], features: Option<&[f32]>) -> Vec<f32> {
    queries(kind, mix, dim, &vec![0.0; names.len()], Some(names), features)
}
