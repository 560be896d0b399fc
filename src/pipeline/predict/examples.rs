//! `examples.html`: the held-out images that a projection head ranks best and worst, with thumbnails and captions.

use std::collections::HashMap;

use base64_simd::STANDARD;

use crate::chunk::features::read_thumbnails;
use crate::chunk::journal::{Journal, Layout};
use crate::pipeline::catalog::RunCatalog;
use crate::pipeline::chunk_files::{ChunkFile, FeatureSet, fetch_files};
use crate::pipeline::context::RunContext;
use crate::pipeline::error::PipelineError;
use crate::pipeline::observe::report::StageRemarks;
use crate::pipeline::predict::fusion::FusionWeights;
use crate::pipeline::train::held_out::HeldOut;
use crate::predict::metrics::{gain, rank_of};
use crate::predict::slices::{FusionSignal, Rankings};
use crate::run_dir::Directory;

/// Name of the page in the run directory.
const FILE: &str = "examples.html";
/// Images in each of the two lists.
const LIST_IMAGES: usize = 20;
/// Ranked captions shown for an image.
const SHOWN_RANKED: usize = 5;
/// Right captions shown for an image.
const SHOWN_RIGHT: usize = 8;

/// An image with its scores.
struct Example {
    image: usize,
    /// Mean gain over its captions.
    ndcg5: f64,
    /// Mean reciprocal rank over its captions.
    mrr: f64,
}

/// Writes the page for the ranking by all signals.
///
/// # Errors
/// When a chunk cannot be read, or the run directory cannot be written.
pub(super) fn write(
    ctx: &RunContext,
    images: &HeldOut,
    catalog: &RunCatalog,
    weights: FusionWeights,
    rankings: &Rankings,
    remarks: &mut StageRemarks,
) -> Result<(), PipelineError> {
    let Some((signal, ranked)) = rankings.last() else { return Ok(()) };
    let mut examples: Vec<Example> = (0..images.images())
        .filter(|image| !images.captions_of.row(*image).is_empty())
        .map(|image| score_image(image, images, &ranked.captions[image]))
        .collect();
    // Images with equal scores stay in corpus order.
    examples.sort_by(|one, other| {
        other.ndcg5.total_cmp(&one.ndcg5).then(other.mrr.total_cmp(&one.mrr)).then(one.image.cmp(&other.image))
    });
    let worst: Vec<&Example> = examples.iter().rev().take(LIST_IMAGES).collect();
    let best: Vec<&Example> = examples.iter().take(LIST_IMAGES).collect();
    let urls: Vec<&str> = best.iter().chain(&worst).map(|example| &*images.urls[example.image]).collect();
    let thumbnails = read_listed_thumbnails(&ctx.dir, &urls)?;
    let by = match signal {
        FusionSignal::Both => format!("pixels and file names (which count {} where pixels count 1)", weights.names),
        _ => "pixels".to_owned(),
    };
    let mut page = String::from(HEAD);
    page.push_str(&format!(
        "<h1>Captions for images held out from training</h1>\n<p>{} images, {} captions, ranked by {by}. Right captions are in \
         green; each image has its address below it.</p>\n",
        images.images(),
        images.captions.len()
    ));
    for (title, examples) in [("Best", best), ("Worst", worst)] {
        page.push_str(&format!("<h2>{title}</h2>\n"));
        for example in examples {
            let thumbnail = thumbnails.get(&*images.urls[example.image]);
            page.push_str(&render_example(example, images, catalog, &ranked.captions[example.image], thumbnail));
        }
    }
    page.push_str("</body></html>\n");
    ctx.dir.write(FILE, page.as_bytes())?;
    remarks.add_output("examples", FILE);
    Ok(())
}

fn score_image(image: usize, images: &HeldOut, ranked: &[u32]) -> Example {
    let (mut gains, mut reciprocals, mut count) = (0.0, 0.0, 0.0);
    for place in images.captions_of.row(image) {
        let rank = rank_of(*place, ranked);
        gains += rank.map_or(0.0, gain);
        reciprocals += rank.map_or(0.0, |rank| 1.0 / rank as f64);
        count += 1.0;
    }
    Example { image, ndcg5: gains / count, mrr: reciprocals / count }
}

/// Reads the thumbnails of some images from the feature chunks, by URL.
fn read_listed_thumbnails(dir: &Directory, urls: &[&str]) -> Result<HashMap<String, Vec<u8>>, PipelineError> {
    let journal = Journal::read(dir.clone(), Layout::train("features"), None)?;
    // A damaged thumbnail is harmless, so do not verify the chunks again.
    let features = FeatureSet::open(journal)?;
    let files: Vec<ChunkFile> = features.files().iter().map(|file| ChunkFile { sum: None, ..file.clone() }).collect();
    let mut found = HashMap::new();
    for fetched in fetch_files(dir, &files) {
        let (_, copy) = fetched?;
        read_thumbnails(&copy, |url, bytes| {
            // The first image of a URL counts.
            if urls.contains(&url) && !found.contains_key(url) {
                found.insert(url.to_owned(), bytes.to_vec());
            }
        })?;
        if found.len() == urls.len() {
            break;
        }
    }
    Ok(found)
}

/// Renders the section of an image.
fn render_example(
    example: &Example,
    images: &HeldOut,
    catalog: &RunCatalog,
    ranked: &[u32],
    thumbnail: Option<&Vec<u8>>,
) -> String {
    let Example { image, ndcg5, .. } = *example;
    let right = images.captions_of.row(image);
    let caption = |place: u32, class: &str| {
        let number = images.captions[place as usize];
        let (text, language) = (catalog.texts.get(number).unwrap_or_default(), catalog.languages.language(number));
        let language = if language.is_empty() { String::new() } else { format!("<i>{}</i> ", escape(language)) };
        format!("<li class=\"{class}\" dir=\"auto\">{language}{}</li>\n", escape(text))
    };
    let picture = match thumbnail {
        Some(bytes) => format!("<img alt=\"\" src=\"data:image/jpeg;base64,{}\">", STANDARD.encode_to_string(bytes)),
        None => "<span>no thumbnail</span>".to_owned(),
    };
    let top: String = ranked
        .iter()
        .take(SHOWN_RANKED)
        .map(|place| caption(*place, if right.contains(place) { "right" } else { "wrong" }))
        .collect();
    let mut own: String = right.iter().take(SHOWN_RIGHT).map(|place| caption(*place, "right")).collect();
    if right.len() > SHOWN_RIGHT {
        own.push_str(&format!("<li>and {} more</li>\n", right.len() - SHOWN_RIGHT));
    }
    format!(
        "<section>\n<figure>{picture}<figcaption>{}</figcaption></figure>\n<div><b>Ranked</b> (NDCG@5 {ndcg5:.2})<ol>\n{top}</ol></div>\n\
         <div><b>Its captions</b><ul>\n{own}</ul></div>\n</section>\n",
        escape(&images.urls[image])
    )
}

/// Escapes text for HTML.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

const HEAD: &str = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Examples</title>\n<style>\n\
body { font: 15px/1.4 sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }\n\
section { display: grid; grid-template-columns: 8em 1fr 1fr; gap: 1em; border-top: 1px solid #ccc; padding: .7em 0; }\n\
figure { margin: 0; } figcaption { font-size: 10px; color: #666; overflow-wrap: anywhere; }\n\
ol, ul { margin: .2em 0; padding-inline-start: 1.4em; } i { color: #888; } .right { color: #070; } .wrong { color: #900; }\n\
</style></head><body>\n";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::catalog::{Languages, Texts};
    use crate::train::Targets;

    #[test]
    fn captions_are_escaped() {
        let mut captions_of = Targets::default();
        captions_of.push(&[0, 1]);
        let images = HeldOut {
            features: Vec::new(),
            captions_of,
            captions: vec![2, 5, 6],
            vectors: Vec::new(),
            urls: vec!["https://x/<a>.jpg".into()],
        };
        let mut texts = Texts::default();
        let mut languages = Languages::default();
        for class in 0..7 {
            texts.push(&format!("<b>{class}</b> & \"it's\"")).unwrap();
            languages.set(class, "ar");
        }
        let catalog = RunCatalog { texts: Arc::new(texts), languages, images: vec![1; 7] };
        let example = Example { image: 0, ndcg5: 0.5, mrr: 0.5 };
        let text = render_example(&example, &images, &catalog, &[2, 0], Some(&vec![1, 2, 3]));
        assert!(text.contains("src=\"data:image/jpeg;base64,AQID\"") && text.contains("https://x/&lt;a&gt;.jpg"));
        assert!(text.contains(
            "<li class=\"wrong\" dir=\"auto\"><i>ar</i> &lt;b&gt;6&lt;/b&gt; &amp; &quot;it&#39;s&quot;</li>"
        ));
        assert_eq!(text.matches("class=\"right\"").count(), 3);
        assert!(render_example(&example, &images, &catalog, &[], None).contains("no thumbnail"));
    }
}
