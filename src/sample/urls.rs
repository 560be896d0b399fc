//! Generates distinct image URLs in the forms of the corpus.

use super::rng::SampleRng;

/// Generator of distinct URLs in the forms of the corpus.
#[derive(Default)]
pub(super) struct UrlGenerator {
    count: u32,
}

impl UrlGenerator {
    /// Returns the next URL. 30 % use http, 31 % are percent-encoded, and the extension is independent of the file
    /// format.
    pub(super) fn next(&mut self, rng: &mut SampleRng) -> String {
        const PLAIN: [&str; 4] = ["Figure", "Geometric_drawing", "Test-picture_", "IMG_"];
        const ENCODED: [&str; 5] = [
            "%D0%A0%D0%B8%D1%81%D1%83%D0%BD%D0%BE%D0%BA_",
            "Zeichnung_%28f%C3%BCr_die_Schule%29_",
            "%E5%9B%B3%E5%BD%A2",
            "D%C3%A9couvrir_la_g%C3%A9om%C3%A9trie%2C_page_",
            "%CE%A3%CF%87%CE%AE%CE%BC%CE%B1_",
        ];
        const EXTENSIONS: [&str; 10] = ["jpg", "jpg", "jpg", "jpg", "JPG", "jpeg", "png", "png", "svg", "tif"];
        let number = self.count;
        self.count += 1;
        let scheme = if rng.chance_percent(30) { "http" } else { "https" };
        let stem = if rng.chance_percent(31) { rng.pick(&ENCODED) } else { rng.pick(&PLAIN) };
        let stem = stem.copied().unwrap_or_default();
        let extension = rng.pick(&EXTENSIONS).copied().unwrap_or_default();
        let folder = rng.below(256);
        format!(
            "{scheme}://upload.wikimedia.org/wikipedia/commons/{:x}/{folder:02x}/{stem}{number:06}.{extension}",
            folder >> 4
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::rng::Stream;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn urls_are_distinct_and_mixed() {
        let mut rng = SampleRng::new(1, Stream::Contents);
        let mut urls = UrlGenerator::default();
        let generated: BTreeSet<String> = (0..2000).map(|_| urls.next(&mut rng)).collect();
        assert_eq!(generated.len(), 2000);
        let count_where = |holds: &dyn Fn(&String) -> bool| generated.iter().filter(|url| holds(url)).count();
        assert!((500..700).contains(&count_where(&|url| url.starts_with("http:"))));
        assert!((520..720).contains(&count_where(&|url| url.contains('%'))));
        assert!(generated.iter().all(|url| url.is_ascii()));
    }
}
