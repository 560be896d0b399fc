//! Image URLs as the corpus has them: dice in, strings out that never repeat.

use super::rng::SampleRng;

/// Hands out URLs in the forms of the corpus; no two are alike.
#[derive(Default)]
pub(super) struct Urls {
    count: u32,
}

impl Urls {
    /// The next URL. Three of ten are http, three of ten percent-encoded, and the ending says nothing of the bytes.
    pub(super) fn next(&mut self, rng: &mut SampleRng) -> String {
        const PLAIN: [&str; 4] = ["Figure", "Geometric_drawing", "Test-picture_", "IMG_"];
        const ENCODED: [&str; 5] = [
            "%D0%A0%D0%B8%D1%81%D1%83%D0%BD%D0%BE%D0%BA_",
            "Zeichnung_%28f%C3%BCr_die_Schule%29_",
            "%E5%9B%B3%E5%BD%A2",
            "D%C3%A9couvrir_la_g%C3%A9om%C3%A9trie%2C_page_",
            "%CE%A3%CF%87%CE%AE%CE%BC%CE%B1_",
        ];
        const ENDINGS: [&str; 10] = ["jpg", "jpg", "jpg", "jpg", "JPG", "jpeg", "png", "png", "svg", "tif"];
        let number = self.count;
        self.count += 1;
        let scheme = if rng.percent(30) { "http" } else { "https" };
        let stem = if rng.percent(31) { rng.pick(&ENCODED) } else { rng.pick(&PLAIN) };
        let stem = stem.copied().unwrap_or_default();
        let ending = rng.pick(&ENDINGS).copied().unwrap_or_default();
        let folder = rng.below(256);
        format!(
            "{scheme}://upload.wikimedia.org/wikipedia/commons/{:x}/{folder:02x}/{stem}{number:06}.{ending}",
            folder >> 4
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::rng::Purpose;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn urls_are_distinct_and_mixed_in_scheme_and_encoding() {
        let mut rng = SampleRng::new(1, Purpose::Plan);
        let mut urls = Urls::default();
        let all: BTreeSet<String> = (0..2000).map(|_| urls.next(&mut rng)).collect();
        assert_eq!(all.len(), 2000);
        let share = |holds: &dyn Fn(&String) -> bool| all.iter().filter(|url| holds(url)).count();
        assert!((500..700).contains(&share(&|url| url.starts_with("http:"))));
        assert!((520..720).contains(&share(&|url| url.contains('%'))));
        assert!(all.iter().all(|url| url.is_ascii()));
    }
}
