//! Which images, rows, ids and captions a drawn corpus has: options in, lists out. Pure: nothing is drawn or written here.
//!
//! Guaranteed: every caption that the truth names stands in a train row whose image has pixels; no URL of a test image
//! occurs in train; each concept's captions are ids of each of its test images, so that a ranker that knows the concept
//! reaches the ceiling of NDCG@5.

use super::SampleOptions;
use super::concepts::CONCEPTS;
use super::concepts::Caption;
use super::concepts::Concept;
use super::concepts::LANGUAGES;
use super::concepts::caption;
use super::concepts::listed_languages;
use super::concepts::unlisted_languages;
use super::encode::UNUSABLE;
use super::encode::Unusable;
use super::rng::Purpose;
use super::rng::SampleRng;
use super::urls::Urls;

/// Train files, train image shards and test image shards.
pub(super) const TRAIN_FILES: usize = 5;
pub(super) const TRAIN_SHARDS: usize = 4;
pub(super) const TEST_SHARDS: usize = 2;

/// The pixels of a row of an image shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Payload {
    /// A good picture of a concept.
    Good { purpose: Purpose, concept: usize },
    /// One that cannot be used; `number` chooses its bytes and its variant.
    Bad { kind: Unusable, number: u32 },
}

/// A row of an image shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShardRow {
    pub(super) url: String,
    pub(super) payload: Payload,
}

/// A row of a train file: usually 18 fields, as bytes because one row is not UTF-8.
pub(super) type TrainRow = Vec<Vec<u8>>;

/// A caption that an image carries in the train files.
pub(super) struct Mention {
    pub(super) url: String,
    pub(super) concept: usize,
    pub(super) caption: Option<Caption>,
    /// Something after the target that only a trimming reader removes.
    pub(super) trailing_space: bool,
}

/// Everything that gets written, in the order in which it gets written.
pub(super) struct Plan {
    pub(super) train_rows: Vec<Vec<TrainRow>>,
    pub(super) train_shards: Vec<Vec<ShardRow>>,
    pub(super) test_shards: Vec<Vec<ShardRow>>,
    /// The URL of the id with this place.
    pub(super) ids: Vec<String>,
    /// The relevant caption of the id with this place.
    pub(super) truth: Vec<String>,
    /// The caption list, with its repeated strings.
    pub(super) list: Vec<String>,
    pub(super) unusable_train_rows: u32,
}

/// Plans the corpus for `options`, which are checked.
pub(super) fn plan(options: &SampleOptions) -> Plan {
    let mut rng = SampleRng::new(options.seed, Purpose::Plan);
    let mut urls = Urls::default();
    let mut mentions = Vec::new();
    let mut rows = train_images(options, &mut rng, &mut urls, &mut mentions);
    let unusable_train_rows = unusable_images(options, &mut rng, &mut urls, &mut mentions, &mut rows);
    images_without_pixels(options, &mut rng, &mut urls, &mut mentions);
    rng.shuffle(&mut rows);
    let train_shards = dealt(rows, TRAIN_SHARDS);

    let mut train_rows: Vec<TrainRow> =
        mentions.iter().map(|mention| super::rows::train_row(mention, &mut rng)).collect();
    train_rows.extend(super::rows::odd_rows(&mut urls, &mut rng));
    rng.shuffle(&mut train_rows);
    let train_rows = dealt(train_rows, TRAIN_FILES);

    let (rows, asked) = test_images(options, &mut rng, &mut urls);
    let (ids, truth): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
    let list = caption_list(&truth, &mut rng);
    let test_shards = dealt(rows, TEST_SHARDS);
    Plan { train_rows, train_shards, test_shards, ids, truth, list, unusable_train_rows }
}

fn train_images(
    options: &SampleOptions,
    rng: &mut SampleRng,
    urls: &mut Urls,
    mentions: &mut Vec<Mention>,
) -> Vec<ShardRow> {
    let mut rows = Vec::new();
    for number in 0..options.train_images {
        let concept = number as usize % CONCEPTS;
        let url = urls.next(rng);
        rows.push(ShardRow {
            url: url.clone(),
            payload: Payload::Good { purpose: Purpose::TrainImage(number), concept },
        });
        // The first image of each concept carries all its captions; later ones a part, some none of the list, some none.
        let fate = if (number as usize) < CONCEPTS { 0 } else { rng.below(100) };
        match fate {
            0..93 => mention_listed(&url, concept, (number as usize) < CONCEPTS, rng, mentions),
            93..97 => mentions.push(unlisted(&url, concept, rng)),
            _ => {}
        }
        // A second row with other bytes under a URL that occurred before.
        if number % 400 == 399 || number == 1 {
            let purpose = Purpose::TrainImage(options.train_images + number);
            rows.push(ShardRow { url, payload: Payload::Good { purpose, concept } });
        }
    }
    rows
}

/// Adds one to three captions of the list, and what else a published image has rows for.
fn mention_listed(url: &str, concept: usize, all: bool, rng: &mut SampleRng, mentions: &mut Vec<Mention>) {
    let languages: Vec<usize> = listed_languages(concept).collect();
    let sure = rng.below(languages.len());
    for (place, &language) in languages.iter().enumerate() {
        if !(all || place == sure || rng.percent(40)) {
            continue;
        }
        // The same caption can stand on two pages.
        for _ in 0..=usize::from(rng.percent(5)) {
            mentions.push(Mention {
                url: url.to_owned(),
                concept,
                caption: Some(caption(concept, language)),
                trailing_space: !all && rng.percent(2),
            });
        }
    }
    if rng.percent(25) {
        mentions.push(unlisted(url, concept, rng));
    }
    if rng.percent(45) {
        // An empty caption leaves `Title [SEP] `.
        let words = &LANGUAGES[rng.below(LANGUAGES.len())];
        let title = words.title(Concept::of(concept)).to_owned();
        let caption = Some(Caption { language: words.code, title, text: String::new() });
        mentions.push(Mention { url: url.to_owned(), concept, caption, trailing_space: false });
    }
    if rng.percent(5) {
        mentions.push(Mention { url: url.to_owned(), concept, caption: None, trailing_space: false });
    }
}

fn unlisted(url: &str, concept: usize, rng: &mut SampleRng) -> Mention {
    let languages: Vec<usize> = unlisted_languages(concept).collect();
    let caption = rng.pick(&languages).map(|&language| caption(concept, language));
    Mention { url: url.to_owned(), concept, caption, trailing_space: false }
}

/// Each kind at least once, all but those without a usable URL wanted by a train row. Returns how many.
fn unusable_images(
    options: &SampleOptions,
    rng: &mut SampleRng,
    urls: &mut Urls,
    mentions: &mut Vec<Mention>,
    rows: &mut Vec<ShardRow>,
) -> u32 {
    let rounds = (options.train_images / 1200).clamp(1, 8);
    let mut number = 0;
    for _ in 0..rounds {
        for kind in UNUSABLE {
            let concept = rng.below(CONCEPTS);
            let url = urls.next(rng);
            mention_listed(&url, concept, false, rng, mentions);
            rows.push(ShardRow { url, payload: Payload::Bad { kind, number } });
            number += 1;
        }
    }
    number
}

/// URLs of the train files that no shard holds: about 6 %, some of them the other scheme of a URL that has pixels.
fn images_without_pixels(options: &SampleOptions, rng: &mut SampleRng, urls: &mut Urls, mentions: &mut Vec<Mention>) {
    for number in 0..(options.train_images / 16).max(2) {
        let twin = rng.below(mentions.len());
        let url = match mentions.get(twin) {
            Some(mention) if number % 8 == 0 => other_scheme(&mention.url),
            _ => urls.next(rng),
        };
        mention_listed(&url, rng.below(CONCEPTS), false, rng, mentions);
    }
}

fn other_scheme(url: &str) -> String {
    match url.strip_prefix("https:") {
        Some(rest) => format!("http:{rest}"),
        None => url.replacen("http:", "https:", 1),
    }
}

/// Rows of the test shards, and each id's URL and relevant caption.
fn test_images(
    options: &SampleOptions,
    rng: &mut SampleRng,
    urls: &mut Urls,
) -> (Vec<ShardRow>, Vec<(String, String)>) {
    let mut rows = Vec::new();
    let mut asked = Vec::new();
    for number in 0..options.test_images {
        let concept = number as usize % CONCEPTS;
        let url = urls.next(rng);
        for language in listed_languages(concept) {
            asked.push((url.clone(), caption(concept, language).target()));
        }
        rows.push(ShardRow { url, payload: Payload::Good { purpose: Purpose::TestImage(number), concept } });
    }
    // One id whose image is a drawing in vectors, and one whose image is nowhere.
    let vectors = urls.next(rng);
    rows.push(ShardRow { url: vectors.clone(), payload: Payload::Bad { kind: Unusable::Svg, number: u32::MAX } });
    for (url, concept) in [(vectors, 0), (urls.next(rng), 1)] {
        for language in listed_languages(concept).take(1) {
            asked.push((url.clone(), caption(concept, language).target()));
        }
    }
    rng.shuffle(&mut rows);
    rng.shuffle(&mut asked);
    (rows, asked)
}

/// The captions of the truth, as often as it names them; those of concepts that no test image has; some that nothing has.
fn caption_list(truth: &[String], rng: &mut SampleRng) -> Vec<String> {
    let mut list = truth.to_vec();
    for concept in 0..CONCEPTS {
        for language in listed_languages(concept) {
            let target = caption(concept, language).target();
            if !truth.contains(&target) {
                list.push(target);
            }
        }
    }
    for number in 0..18 {
        let words = &LANGUAGES[number % LANGUAGES.len()];
        let concept = Concept::undrawn(number / 2);
        list.push(format!("{} [SEP] {}", words.title(concept), words.caption(concept)));
    }
    // A title without a caption, and strings that stand twice however few test images there are.
    list.push("Geometry [SEP] ".to_owned());
    list.extend_from_within(list.len() - 2..);
    rng.shuffle(&mut list);
    list
}

/// Deals `items` to `hands` lists, in turn.
fn dealt<T>(items: Vec<T>, hands: usize) -> Vec<Vec<T>> {
    let mut lists: Vec<Vec<T>> = (0..hands).map(|_| Vec::new()).collect();
    for (place, item) in items.into_iter().enumerate() {
        lists[place % hands].push(item);
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn planned(train_images: u32, test_images: u32) -> Plan {
        plan(&SampleOptions { train_images, test_images, seed: 42 })
    }

    #[test]
    fn every_caption_of_the_truth_stands_in_a_train_row_whose_image_has_pixels() {
        let plan = planned(40, 60);
        let drawn: BTreeSet<&[u8]> = plan
            .train_shards
            .iter()
            .flatten()
            .filter(|row| matches!(row.payload, Payload::Good { .. }))
            .map(|row| row.url.as_bytes())
            .collect();
        let taught: BTreeSet<&[u8]> = plan
            .train_rows
            .iter()
            .flatten()
            .filter(|row| row.len() == 18 && drawn.contains(row[2].as_slice()))
            .map(|row| row[17].as_slice())
            .collect();
        assert!(plan.truth.iter().all(|caption| taught.contains(caption.as_bytes())));
        assert!(plan.truth.iter().all(|caption| plan.list.contains(caption)));
        assert!(plan.list.iter().any(|caption| !taught.contains(caption.as_bytes())));
    }

    #[test]
    fn no_test_image_occurs_in_train_and_two_ids_cannot_be_answered() {
        let plan = planned(400, 300);
        let train: BTreeSet<&str> = plan.train_shards.iter().flatten().map(|row| row.url.as_str()).collect();
        let test: BTreeSet<&str> = plan.test_shards.iter().flatten().map(|row| row.url.as_str()).collect();
        assert!(train.is_disjoint(&test));
        let mentioned = |url: &str| {
            plan.train_rows.iter().flatten().any(|row| row.get(2).is_some_and(|field| field == url.as_bytes()))
        };
        assert!(!test.iter().any(|url| mentioned(url)));
        assert_eq!(plan.ids.iter().filter(|url| !test.contains(url.as_str())).count(), 1);
        assert_eq!(plan.ids.len(), plan.truth.len());
        assert!(plan.ids.len() > 200 && 2.0 / (plan.ids.len() as f64) < 0.01);
    }

    #[test]
    fn about_six_percent_of_the_labelled_urls_have_no_pixels() {
        let plan = planned(2400, 300);
        let drawn: BTreeSet<&[u8]> = plan.train_shards.iter().flatten().map(|row| row.url.as_bytes()).collect();
        let labelled: BTreeSet<&[u8]> = plan
            .train_rows
            .iter()
            .flatten()
            .filter(|row| row.len() == 18 && !row[2].is_empty())
            .map(|row| row[2].as_slice())
            .collect();
        let lost = labelled.iter().filter(|url| !drawn.contains(*url)).count() as f64 / labelled.len() as f64;
        assert!((0.04..0.08).contains(&lost), "{lost}");
        assert!(drawn.iter().any(|url| !labelled.contains(url)), "some images nobody captions");
    }
}
