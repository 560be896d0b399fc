//! A page of held-out images that a text head ranks best and worst, with their thumbnails and captions.

use std::collections::HashMap;

use base64_simd::STANDARD;

use super::catalog::Own;
use super::evidence::{Kind, Mix, Rankings, Side};
use super::text_training::HeldOut;
use super::{Journal, Layout, PipelineError, Run};
use crate::chunk::features::read_thumbnails;
use crate::predict::metrics::{gain, rank_of};

/// The page, inside the run directory.
pub(super) const PAGE: &str = "examples.html";
/// Images of either kind.
const SHOWN: usize = 20;
/// Captions of an image that are shown.
const RANKED: usize = 5;
/// Right captions of an image that are shown.
const RIGHT: usize = 8;

/// An image with what its questions came to.
struct Example {
    image: usize,
    /// Mean gain of its questions, then mean reciprocal rank.
    score: (f64, f64),
}

impl Run {
    /// Writes the page.
    pub(super) fn examples(
        &mut self,
        side: &Side<'_>,
        images: &HeldOut,
        own: &Own,
        mix: Mix,
        rankings: &Rankings,
    ) -> Result<(), PipelineError> {
        let Some((kind, ranked)) = rankings.last() else { return Ok(()) };
        let mut examples: Vec<Example> = (0..images.images())
            .filter(|image| !images.captions_of.row(*image).is_empty())
            .map(|image| {
                let ranks = images.captions_of.row(image).iter().map(|place| rank_of(*place, &ranked[image]));
                let (mut gains, mut reciprocals, mut count) = (0.0, 0.0, 0.0);
                for rank in ranks {
                    gains += rank.map_or(0.0, gain);
                    reciprocals += rank.map_or(0.0, |rank| 1.0 / rank as f64);
                    count += 1.0;
                }
                Example { image, score: (gains / count, reciprocals / count) }
            })
            .collect();
        // The first of equals, in the order of the corpus.
        examples.sort_by(|one, other| {
            other
                .score
                .0
                .total_cmp(&one.score.0)
                .then(other.score.1.total_cmp(&one.score.1))
                .then(one.image.cmp(&other.image))
        });
        let worst: Vec<&Example> = examples.iter().rev().take(SHOWN).collect();
        let best: Vec<&Example> = examples.iter().take(SHOWN).collect();
        let wanted: Vec<&str> = best.iter().chain(&worst).map(|example| &*images.urls[example.image]).collect();
        let pictures = self.thumbnails(&wanted)?;
        let by = match kind {
            Kind::Both => format!("pixels and file names (which count {} where pixels count 1)", mix.names),
            _ => "pixels".to_owned(),
        };
        let mut page = String::from(HEAD);
        page.push_str(&format!(
            "<h1>Captions for images held out from training</h1>\n<p>{} images, {} captions, ranked by {by}. Right captions are in \
             green; each image has its address below it.</p>\n",
            images.images(),
            side.candidates.len()
        ));
        for (title, examples) in [("Best", best), ("Worst", worst)] {
            page.push_str(&format!("<h2>{title}</h2>\n"));
            for Example { image, score } in examples {
                page.push_str(&entry(
                    *image,
                    score.0,
                    images,
                    own,
                    &ranked[*image],
                    pictures.get(&*images.urls[*image]),
                ));
            }
        }
        page.push_str("</body></html>\n");
        self.directory.write(PAGE, page.as_bytes())?;
        self.output("examples", PAGE);
        Ok(())
    }

    /// Thumbnails by URL, out of the chunks of features.
    fn thumbnails(&self, urls: &[&str]) -> Result<HashMap<String, Vec<u8>>, PipelineError> {
        let journal = Journal::read(self.directory.clone(), Layout::train("features"), None)?;
        let mut found = HashMap::new();
        let layout = journal.layout();
        let kept = journal.entries().iter().filter(|(_, entry)| entry.tally.kept > 0);
        let names: Vec<String> = kept.map(|(id, _)| layout.chunk(*id)).collect();
        for names in names.chunks(32) {
            for copy in self.directory.fetch_all(names)? {
                read_thumbnails(&copy, |url, bytes| {
                    if urls.contains(&url) {
                        found.insert(url.to_owned(), bytes.to_vec());
                    }
                })?;
            }
            if found.len() == urls.len() {
                break;
            }
        }
        Ok(found)
    }
}

fn entry(image: usize, score: f64, images: &HeldOut, own: &Own, ranked: &[u32], picture: Option<&Vec<u8>>) -> String {
    let right = images.captions_of.row(image);
    let caption = |place: u32, class: &str| {
        let number = images.captions[place as usize];
        let (text, language) = (own.classes.text(number).unwrap_or_default(), own.languages.of(number));
        let language = if language.is_empty() { String::new() } else { format!("<i>{}</i> ", escape(language)) };
        format!("<li class=\"{class}\" dir=\"auto\">{language}{}</li>\n", escape(text))
    };
    let picture = match picture {
        Some(bytes) => format!("<img alt=\"\" src=\"data:image/jpeg;base64,{}\">", STANDARD.encode_to_string(bytes)),
        None => "<span>no thumbnail</span>".to_owned(),
    };
    let top: String = ranked
        .iter()
        .take(RANKED)
        .map(|place| caption(*place, if right.contains(place) { "right" } else { "wrong" }))
        .collect();
    let mut theirs: String = right.iter().take(RIGHT).map(|place| caption(*place, "right")).collect();
    if right.len() > RIGHT {
        theirs.push_str(&format!("<li>and {} more</li>\n", right.len() - RIGHT));
    }
    format!(
        "<section>\n<figure>{picture}<figcaption>{}</figcaption></figure>\n<div><b>Ranked</b> (NDCG@5 {score:.2})<ol>\n{top}</ol></div>\n\
         <div><b>Its captions</b><ul>\n{theirs}</ul></div>\n</section>\n",
        escape(&images.urls[image])
    )
}

/// Text as HTML has it.
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
    use crate::catalog::{ClassSource, Classes, Languages, Match};
    use crate::train::Targets;

    #[test]
    fn captions_are_text_and_no_markup() {
        let mut captions_of = Targets::default();
        captions_of.push(&[0, 1]);
        let images = HeldOut {
            features: Vec::new(),
            captions_of,
            captions: vec![2, 5, 6],
            vectors: Vec::new(),
            urls: vec!["https://x/<a>.jpg".into()],
        };
        let mut classes = Classes::new(ClassSource::List, Match::Exact);
        let mut languages = Languages::default();
        for class in 0..7 {
            classes.add(&format!("<b>{class}</b> & \"it's\"")).unwrap();
            languages.set(class, "ar");
        }
        let own = Own { classes: Arc::new(classes), languages, images: vec![1; 7] };
        let text = entry(0, 0.5, &images, &own, &[2, 0], Some(&vec![1, 2, 3]));
        assert!(text.contains("src=\"data:image/jpeg;base64,AQID\"") && text.contains("https://x/&lt;a&gt;.jpg"));
        assert!(text.contains(
            "<li class=\"wrong\" dir=\"auto\"><i>ar</i> &lt;b&gt;6&lt;/b&gt; &amp; &quot;it&#39;s&quot;</li>"
        ));
        assert_eq!(text.matches("class=\"right\"").count(), 3);
        assert!(entry(0, 0.0, &images, &own, &[], None).contains("no thumbnail"));
    }
}
