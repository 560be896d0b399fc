//! Contents of a synthetic corpus: generates its images, rows, ids and captions from the options. Nothing is rendered
//! or written here.
//!
//! Every caption in the truth occurs in a train row whose image has pixels. No URL of a test image occurs in the train
//! files. All captions of a scene are ids of each of its test images, so a ranker that recognises the scene reaches the
//! maximum of NDCG@5.

use super::SampleOptions;
use super::encode::UNUSABLE_KINDS;
use super::encode::Unusable;
use super::rng::SampleRng;
use super::rng::Stream;
use super::scenes::Caption;
use super::scenes::LANGUAGES;
use super::scenes::SCENE_COUNT;
use super::scenes::Scene;
use super::scenes::listed_languages;
use super::scenes::make_caption;
use super::scenes::unlisted_languages;
use super::urls::UrlGenerator;

/// Number of train files.
pub(super) const TRAIN_FILES: usize = 5;
/// Number of train image shards.
pub(super) const TRAIN_SHARDS: usize = 4;
/// Number of test image shards.
pub(super) const TEST_SHARDS: usize = 2;

/// Payload of a row of an image shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Payload {
    /// A valid image of a scene.
    Image { stream: Stream, scene: usize },
    /// An unusable payload; `number` selects its bytes and its variant.
    Unusable { kind: Unusable, number: u32 },
}

/// Row of an image shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShardRow {
    pub(super) url: String,
    pub(super) payload: Payload,
}

/// Row of a train file: usually 18 fields, stored as bytes because one row is not UTF-8.
pub(super) type TrainRow = Vec<Vec<u8>>;

/// Caption of an image in the train files.
pub(super) struct TrainCaption {
    pub(super) url: String,
    pub(super) scene: usize,
    pub(super) caption: Option<Caption>,
    /// Whether trailing white space follows the target.
    pub(super) trailing_space: bool,
}

/// Everything that is written, in order.
pub(super) struct CorpusContents {
    pub(super) train_rows: Vec<Vec<TrainRow>>,
    pub(super) train_shards: Vec<Vec<ShardRow>>,
    pub(super) test_shards: Vec<Vec<ShardRow>>,
    /// URL of each id.
    pub(super) ids: Vec<String>,
    /// Relevant caption of each id.
    pub(super) truth: Vec<String>,
    /// Caption list, with its duplicates.
    pub(super) list: Vec<String>,
    pub(super) unusable_train_rows: u32,
}

/// Generates the contents of a corpus for validated `options`.
pub(super) fn generate(options: &SampleOptions) -> CorpusContents {
    let mut rng = SampleRng::new(options.seed, Stream::Contents);
    let mut urls = UrlGenerator::default();
    let mut captions = Vec::new();
    let mut rows = generate_train_images(options, &mut rng, &mut urls, &mut captions);
    let unusable_train_rows = generate_unusable_images(options, &mut rng, &mut urls, &mut captions, &mut rows);
    add_captions_without_pixels(options, &mut rng, &mut urls, &mut captions);
    rng.shuffle(&mut rows);
    let train_shards = deal_round_robin(rows, TRAIN_SHARDS);

    let mut train_rows: Vec<TrainRow> =
        captions.iter().map(|caption| super::rows::train_row(caption, &mut rng)).collect();
    train_rows.extend(super::rows::malformed_rows(&mut urls, &mut rng));
    rng.shuffle(&mut train_rows);
    let train_rows = deal_round_robin(train_rows, TRAIN_FILES);

    let (rows, test_ids) = generate_test_images(options, &mut rng, &mut urls);
    let (ids, truth): (Vec<_>, Vec<_>) = test_ids.into_iter().unzip();
    let list = generate_caption_list(&truth, &mut rng);
    let test_shards = deal_round_robin(rows, TEST_SHARDS);
    CorpusContents { train_rows, train_shards, test_shards, ids, truth, list, unusable_train_rows }
}

fn generate_train_images(
    options: &SampleOptions,
    rng: &mut SampleRng,
    urls: &mut UrlGenerator,
    captions: &mut Vec<TrainCaption>,
) -> Vec<ShardRow> {
    let mut rows = Vec::new();
    for number in 0..options.train_images {
        let scene = number as usize % SCENE_COUNT;
        let url = urls.next(rng);
        rows.push(ShardRow { url: url.clone(), payload: Payload::Image { stream: Stream::TrainImage(number), scene } });
        // The first image of each scene has all listed captions of the scene. Later images have some of them, an
        // unlisted one, or none.
        let roll = if (number as usize) < SCENE_COUNT { 0 } else { rng.below(100) };
        match roll {
            0..93 => add_listed_captions(&url, scene, (number as usize) < SCENE_COUNT, rng, captions),
            93..97 => captions.push(unlisted_caption(&url, scene, rng)),
            _ => {}
        }
        // A duplicate: another image under the same URL.
        if number % 400 == 399 || number == 1 {
            let stream = Stream::TrainImage(options.train_images + number);
            rows.push(ShardRow { url, payload: Payload::Image { stream, scene } });
        }
    }
    rows
}

/// Adds one to three listed captions and the other kinds of rows that a published image has.
fn add_listed_captions(url: &str, scene: usize, all: bool, rng: &mut SampleRng, captions: &mut Vec<TrainCaption>) {
    let languages: Vec<usize> = listed_languages(scene).collect();
    let guaranteed = rng.below(languages.len());
    for (index, &language) in languages.iter().enumerate() {
        if !(all || index == guaranteed || rng.chance_percent(40)) {
            continue;
        }
        // The same caption can occur on two pages.
        for _ in 0..=usize::from(rng.chance_percent(5)) {
            captions.push(TrainCaption {
                url: url.to_owned(),
                scene,
                caption: Some(make_caption(scene, language)),
                trailing_space: !all && rng.chance_percent(2),
            });
        }
    }
    if rng.chance_percent(25) {
        captions.push(unlisted_caption(url, scene, rng));
    }
    if rng.chance_percent(45) {
        // An empty caption gives `Title [SEP] `.
        let words = &LANGUAGES[rng.below(LANGUAGES.len())];
        let title = words.title(Scene::from_number(scene)).to_owned();
        let caption = Some(Caption { language: words.code, title, text: String::new() });
        captions.push(TrainCaption { url: url.to_owned(), scene, caption, trailing_space: false });
    }
    if rng.chance_percent(5) {
        captions.push(TrainCaption { url: url.to_owned(), scene, caption: None, trailing_space: false });
    }
}

fn unlisted_caption(url: &str, scene: usize, rng: &mut SampleRng) -> TrainCaption {
    let languages: Vec<usize> = unlisted_languages(scene).collect();
    let caption = rng.pick(&languages).map(|&language| make_caption(scene, language));
    TrainCaption { url: url.to_owned(), scene, caption, trailing_space: false }
}

/// Adds every kind of unusable row at least once and returns their number. Train rows refer to all of their URLs.
fn generate_unusable_images(
    options: &SampleOptions,
    rng: &mut SampleRng,
    urls: &mut UrlGenerator,
    captions: &mut Vec<TrainCaption>,
    rows: &mut Vec<ShardRow>,
) -> u32 {
    let rounds = (options.train_images / 1200).clamp(1, 8);
    let mut number = 0;
    for _ in 0..rounds {
        for kind in UNUSABLE_KINDS {
            let scene = rng.below(SCENE_COUNT);
            let url = urls.next(rng);
            add_listed_captions(&url, scene, false, rng, captions);
            rows.push(ShardRow { url, payload: Payload::Unusable { kind, number } });
            number += 1;
        }
    }
    number
}

/// Adds captions of about 6 % more URLs, which have no pixels. Some are a URL with pixels under the other scheme.
fn add_captions_without_pixels(
    options: &SampleOptions,
    rng: &mut SampleRng,
    urls: &mut UrlGenerator,
    captions: &mut Vec<TrainCaption>,
) {
    for number in 0..(options.train_images / 16).max(2) {
        let original = rng.below(captions.len());
        let url = match captions.get(original) {
            Some(caption) if number % 8 == 0 => other_scheme(&caption.url),
            _ => urls.next(rng),
        };
        add_listed_captions(&url, rng.below(SCENE_COUNT), false, rng, captions);
    }
}

fn other_scheme(url: &str) -> String {
    match url.strip_prefix("https:") {
        Some(rest) => format!("http:{rest}"),
        None => url.replacen("http:", "https:", 1),
    }
}

/// Generates the rows of the test shards, and the URL and relevant caption of each id.
fn generate_test_images(
    options: &SampleOptions,
    rng: &mut SampleRng,
    urls: &mut UrlGenerator,
) -> (Vec<ShardRow>, Vec<(String, String)>) {
    let mut rows = Vec::new();
    let mut test_ids = Vec::new();
    for number in 0..options.test_images {
        let scene = number as usize % SCENE_COUNT;
        let url = urls.next(rng);
        for language in listed_languages(scene) {
            test_ids.push((url.clone(), make_caption(scene, language).target()));
        }
        rows.push(ShardRow { url, payload: Payload::Image { stream: Stream::TestImage(number), scene } });
    }
    // The image of one id is a vector drawing, and that of another is missing.
    let vector_url = urls.next(rng);
    rows.push(ShardRow {
        url: vector_url.clone(),
        payload: Payload::Unusable { kind: Unusable::Svg, number: u32::MAX },
    });
    for (url, scene) in [(vector_url, 0), (urls.next(rng), 1)] {
        for language in listed_languages(scene).take(1) {
            test_ids.push((url.clone(), make_caption(scene, language).target()));
        }
    }
    rng.shuffle(&mut rows);
    rng.shuffle(&mut test_ids);
    (rows, test_ids)
}

/// Generates the caption list: the captions of the truth, repeated as there, those of scenes without a test image, and
/// some of unrendered scenes.
fn generate_caption_list(truth: &[String], rng: &mut SampleRng) -> Vec<String> {
    let mut list = truth.to_vec();
    for scene in 0..SCENE_COUNT {
        for language in listed_languages(scene) {
            let target = make_caption(scene, language).target();
            if !truth.contains(&target) {
                list.push(target);
            }
        }
    }
    for number in 0..18 {
        let words = &LANGUAGES[number % LANGUAGES.len()];
        let scene = Scene::unrendered(number / 2);
        list.push(format!("{} [SEP] {}", words.title(scene), words.describe(scene)));
    }
    // A title without a caption, and strings that occur twice for any number of test images.
    list.push("Geometry [SEP] ".to_owned());
    list.extend_from_within(list.len() - 2..);
    rng.shuffle(&mut list);
    list
}

/// Distributes `items` over `count` lists round-robin.
fn deal_round_robin<T>(items: Vec<T>, count: usize) -> Vec<Vec<T>> {
    let mut lists: Vec<Vec<T>> = (0..count).map(|_| Vec::new()).collect();
    for (index, item) in items.into_iter().enumerate() {
        lists[index % count].push(item);
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn generate_with(train_images: u32, test_images: u32) -> CorpusContents {
        generate(&SampleOptions { train_images, test_images, ..SampleOptions::default() })
    }

    #[test]
    fn truth_captions_have_a_train_image() {
        let contents = generate_with(40, 60);
        let with_pixels: BTreeSet<&[u8]> = contents
            .train_shards
            .iter()
            .flatten()
            .filter(|row| matches!(row.payload, Payload::Image { .. }))
            .map(|row| row.url.as_bytes())
            .collect();
        let trained: BTreeSet<&[u8]> = contents
            .train_rows
            .iter()
            .flatten()
            .filter(|row| row.len() == 18 && with_pixels.contains(row[2].as_slice()))
            .map(|row| row[17].as_slice())
            .collect();
        assert!(contents.truth.iter().all(|caption| trained.contains(caption.as_bytes())));
        assert!(contents.truth.iter().all(|caption| contents.list.contains(caption)));
        assert!(contents.list.iter().any(|caption| !trained.contains(caption.as_bytes())));
    }

    #[test]
    fn test_urls_do_not_occur_in_train() {
        let contents = generate_with(400, 300);
        let train: BTreeSet<&str> = contents.train_shards.iter().flatten().map(|row| row.url.as_str()).collect();
        let test: BTreeSet<&str> = contents.test_shards.iter().flatten().map(|row| row.url.as_str()).collect();
        assert!(train.is_disjoint(&test));
        let mentioned = |url: &str| {
            contents.train_rows.iter().flatten().any(|row| row.get(2).is_some_and(|field| field == url.as_bytes()))
        };
        assert!(!test.iter().any(|url| mentioned(url)));
        assert_eq!(contents.ids.iter().filter(|url| !test.contains(url.as_str())).count(), 1);
        assert_eq!(contents.ids.len(), contents.truth.len());
        assert!(contents.ids.len() > 200 && 2.0 / (contents.ids.len() as f64) < 0.01);
    }

    #[test]
    fn six_percent_of_labelled_urls_have_no_pixels() {
        let contents = generate_with(2400, 300);
        let with_pixels: BTreeSet<&[u8]> =
            contents.train_shards.iter().flatten().map(|row| row.url.as_bytes()).collect();
        let labelled: BTreeSet<&[u8]> = contents
            .train_rows
            .iter()
            .flatten()
            .filter(|row| row.len() == 18 && !row[2].is_empty())
            .map(|row| row[2].as_slice())
            .collect();
        let lost = labelled.iter().filter(|url| !with_pixels.contains(*url)).count() as f64 / labelled.len() as f64;
        assert!((0.04..0.08).contains(&lost), "{lost}");
        assert!(with_pixels.iter().any(|url| !labelled.contains(url)), "some images have no caption");
    }
}
