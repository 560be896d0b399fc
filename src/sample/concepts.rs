//! What is drawn and how it is called: shapes and colours, their words in ten languages and eight scripts, and the forty
//! pairs of them that make the classes.
//!
//! No two concepts share their pair of colours, so that a linear head on the features of an untrained backbone can tell
//! them apart. The last six hold black, white and grey only: they are what the grey and one-bit formats are used for.

/// How many concepts there are.
pub(super) const CONCEPTS: usize = 40;

/// What stands in the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Circle,
    Square,
    Triangle,
    Star,
    Spool,
    Cross,
    HorizontalStripes,
    VerticalStripes,
    Chequerboard,
    Rhombus,
}

/// All shapes, in the order of the word lists.
pub(super) const SHAPES: [Shape; 10] = [
    Shape::Circle,
    Shape::Square,
    Shape::Triangle,
    Shape::Star,
    Shape::Spool,
    Shape::Cross,
    Shape::HorizontalStripes,
    Shape::VerticalStripes,
    Shape::Chequerboard,
    Shape::Rhombus,
];

/// RGB of the colours, in the order of the word lists: nine colours, then black, white and grey.
pub(super) const COLOURS: [[u8; 3]; 12] = [
    [205, 38, 38],
    [40, 150, 60],
    [40, 80, 200],
    [240, 210, 50],
    [240, 130, 30],
    [130, 50, 160],
    [244, 150, 190],
    [115, 72, 40],
    [45, 185, 180],
    [20, 20, 20],
    [245, 245, 245],
    [128, 128, 128],
];
/// How many of [`COLOURS`] have a hue.
const HUES: usize = 9;
const BLACK: usize = 9;
/// The place of white in [`COLOURS`].
pub(super) const WHITE: usize = 10;
const GREY: usize = 11;

/// A class of pictures: indices into [`SHAPES`] and [`COLOURS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Concept {
    pub(super) shape: usize,
    pub(super) front: usize,
    pub(super) back: usize,
}

impl Concept {
    /// The concept with this number; numbers from [`CONCEPTS`] on begin again.
    pub(super) fn of(number: usize) -> Self {
        const GREYS: [(usize, usize); 6] =
            [(BLACK, WHITE), (WHITE, BLACK), (GREY, WHITE), (WHITE, GREY), (BLACK, GREY), (GREY, BLACK)];
        let number = number % CONCEPTS;
        // 27 pairs of two hues, 7 hues on white, 6 pairs without hue. Sevenths walk through all ten shapes.
        let shape = (number * 7) % SHAPES.len();
        let (front, back) = match number {
            0..27 => (number % HUES, (number + 1 + number / HUES) % HUES),
            27..34 => (number - 27, WHITE),
            _ => GREYS[number - 34],
        };
        Self { shape, front, back }
    }

    /// Concepts that nothing is drawn of: their captions are in the list and in no train row.
    pub(super) fn undrawn(number: usize) -> Self {
        Self { shape: number % SHAPES.len(), front: number % HUES, back: (number + 4 + number / HUES) % HUES }
    }

    /// Whether grey formats keep all of it.
    pub(super) fn is_grey(self) -> bool {
        self.front >= HUES && self.back >= HUES
    }

    /// Whether one bit a pixel keeps all of it.
    pub(super) fn is_black_and_white(self) -> bool {
        self.is_grey() && self.front != GREY && self.back != GREY
    }
}

/// The words of one language.
pub(super) struct Language {
    /// As in the column `language`.
    pub(super) code: &'static str,
    shapes: [&'static str; 10],
    colours: [&'static str; 12],
    /// `{s}`, `{f}` and `{b}` stand for the shape, its colour and that of the background. The form is chosen so that the
    /// words need no inflection.
    sentence: &'static str,
}

impl Language {
    /// The page title: the name of the shape.
    pub(super) fn title(&self, concept: Concept) -> &'static str {
        self.shapes[concept.shape]
    }

    /// The caption without a title.
    pub(super) fn caption(&self, concept: Concept) -> String {
        self.sentence
            .replace("{s}", self.shapes[concept.shape])
            .replace("{f}", self.colours[concept.front])
            .replace("{b}", self.colours[concept.back])
    }
}

/// A string of the caption list, and the language and title of the page that it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caption {
    pub(super) language: &'static str,
    pub(super) title: String,
    /// The part after `[SEP]`; may be empty.
    pub(super) text: String,
}

impl Caption {
    /// `title [SEP] text`: an empty text leaves the space behind the marker, as in the published files.
    pub(super) fn target(&self) -> String {
        format!("{} [SEP] {}", self.title, self.text)
    }
}

/// How many captions of the list the concept has: 1, 2 or 3.
pub(super) fn caption_count(number: usize) -> usize {
    1 + number % 3
}

/// The caption of the concept `number` in the language with the place `language`, decorated with what published captions
/// hold: commas, quotes, line ends, tabs, no-break spaces.
pub(super) fn caption(number: usize, language: usize) -> Caption {
    let concept = Concept::of(number);
    let words = &LANGUAGES[language % LANGUAGES.len()];
    let mut text = words.caption(concept);
    match number % 8 {
        1 => text.push_str(" (\"No. 7\")"),
        3 => text.push_str("\n300 px, 2014"),
        4 => text.push_str("\u{a0}–\u{a0}№\u{a0}4"),
        6 => text.push_str(", \"a\",\tb"),
        _ => {}
    }
    // Three titles that a reader with a notion of missing values loses.
    let title = match (number, language == first_language(number)) {
        (3, true) => "NA",
        (11, true) => "null",
        (19, true) => "nan",
        _ => words.title(concept),
    };
    Caption { language: words.code, title: title.to_owned(), text }
}

fn first_language(number: usize) -> usize {
    (number * 3) % LANGUAGES.len()
}

/// The places of the languages in which the concept's captions are in the list.
pub(super) fn listed_languages(number: usize) -> impl Iterator<Item = usize> {
    (0..caption_count(number)).map(move |step| (first_language(number) + step) % LANGUAGES.len())
}

/// The places of the languages in which the concept has captions that are not in the list.
pub(super) fn unlisted_languages(number: usize) -> impl Iterator<Item = usize> {
    (caption_count(number)..LANGUAGES.len()).map(move |step| (first_language(number) + step) % LANGUAGES.len())
}

/// English, German, French, Russian, Arabic, Hindi, Japanese, Chinese, Greek, Hebrew.
#[rustfmt::skip]
pub(super) const LANGUAGES: [Language; 10] = [
    Language {
        code: "en",
        shapes: ["Circle", "Square", "Triangle", "Star", "Spool", "Cross", "Horizontal stripes", "Vertical stripes", "Chequerboard", "Rhombus"],
        colours: ["red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "turquoise", "black", "white", "grey"],
        sentence: "{s} in {f}, on a background of {b}",
    },
    Language {
        code: "de",
        shapes: ["Kreis", "Quadrat", "Dreieck", "Stern", "Spool", "Kreuz", "Waagerechte Streifen", "Senkrechte Streifen", "Schachbrettmuster", "Raute"],
        colours: ["Rot", "Grün", "Blau", "Gelb", "Orange", "Violett", "Rosa", "Braun", "Türkis", "Schwarz", "Weiß", "Grau"],
        sentence: "{s} in {f} auf {b}",
    },
    Language {
        code: "fr",
        shapes: ["Cercle", "Carré", "Triangle", "Étoile", "Anneau", "Croix", "Rayures horizontales", "Rayures verticales", "Damier", "Losange"],
        colours: ["rouge", "verte", "bleue", "jaune", "orange", "violette", "rose", "brune", "turquoise", "noire", "blanche", "grise"],
        sentence: "{s} de couleur {f}, sur fond de couleur {b}",
    },
    Language {
        code: "ru",
        shapes: ["Круг", "Квадрат", "Треугольник", "Звезда", "Кольцо", "Крест", "Горизонтальные полосы", "Вертикальные полосы", "Шахматный узор", "Ромб"],
        colours: ["красного", "зелёного", "синего", "жёлтого", "оранжевого", "фиолетового", "розового", "коричневого", "бирюзового", "чёрного", "белого", "серого"],
        sentence: "{s} {f} цвета на фоне {b} цвета",
    },
    Language {
        code: "ar",
        shapes: ["دائرة", "مربع", "مثلث", "نجمة", "حلقة", "صليب", "خطوط أفقية", "خطوط عمودية", "رقعة شطرنج", "معين"],
        colours: ["الأحمر", "الأخضر", "الأزرق", "الأصفر", "البرتقالي", "البنفسجي", "الوردي", "البني", "الفيروزي", "الأسود", "الأبيض", "الرمادي"],
        sentence: "{s} باللون {f} على خلفية باللون {b}",
    },
    Language {
        code: "hi",
        shapes: ["वृत्त", "वर्ग", "त्रिभुज", "तारा", "छल्ला", "क्रॉस", "क्षैतिज धारियाँ", "खड़ी धारियाँ", "शतरंज पैटर्न", "समचतुर्भुज"],
        colours: ["लाल", "हरा", "नीला", "पीला", "नारंगी", "बैंगनी", "गुलाबी", "भूरा", "फ़िरोज़ी", "काला", "सफ़ेद", "स्लेटी"],
        sentence: "{s}, रंग {f}, पृष्ठभूमि का रंग {b}",
    },
    Language {
        code: "ja",
        shapes: ["円", "正方形", "三角形", "星形", "輪", "十字", "横縞", "縦縞", "市松模様", "菱形"],
        colours: ["赤色", "緑色", "青色", "黄色", "オレンジ色", "紫色", "ピンク色", "茶色", "青緑色", "黒色", "白色", "灰色"],
        sentence: "{b}の背景に{f}の{s}",
    },
    Language {
        code: "zh",
        shapes: ["圆形", "正方形", "三角形", "星形", "圆环", "十字", "横条纹", "竖条纹", "棋盘格", "菱形"],
        colours: ["红色", "绿色", "蓝色", "黄色", "橙色", "紫色", "粉色", "棕色", "青绿色", "黑色", "白色", "灰色"],
        sentence: "{b}背景上的{f}{s}",
    },
    Language {
        code: "el",
        shapes: ["Κύκλος", "Τετράγωνο", "Τρίγωνο", "Αστέρι", "Δακτύλιος", "Σταυρός", "Οριζόντιες ρίγες", "Κάθετες ρίγες", "Σκακιέρα", "Ρόμβος"],
        colours: ["κόκκινο", "πράσινο", "μπλε", "κίτρινο", "πορτοκαλί", "μοβ", "ροζ", "καφέ", "τιρκουάζ", "μαύρο", "λευκό", "γκρι"],
        sentence: "{s} σε {f} χρώμα, με φόντο σε {b} χρώμα",
    },
    Language {
        code: "he",
        shapes: ["עיגול", "ריבוע", "משולש", "כוכב", "טבעת", "צלב", "פסים אופקיים", "פסים אנכיים", "לוח שחמט", "מעוין"],
        colours: ["אדום", "ירוק", "כחול", "צהוב", "כתום", "סגול", "ורוד", "חום", "טורקיז", "שחור", "לבן", "אפור"],
        sentence: "{s} בצבע {f} על רקע בצבע {b}",
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_concepts_share_their_pair_of_colours() {
        let pairs: BTreeSet<_> =
            (0..CONCEPTS).map(|number| (Concept::of(number).front, Concept::of(number).back)).collect();
        assert_eq!(pairs.len(), CONCEPTS);
        assert!((0..CONCEPTS).all(|number| Concept::of(number).front != Concept::of(number).back));
        assert!((0..9).all(|number| {
            let undrawn = Concept::undrawn(number);
            undrawn.front != undrawn.back && !pairs.contains(&(undrawn.front, undrawn.back))
        }));
    }

    #[test]
    fn every_caption_is_another_string_and_no_listed_one_is_unlisted() {
        let strings = |languages: &dyn Fn(usize) -> Vec<usize>| -> Vec<String> {
            (0..CONCEPTS)
                .flat_map(|number| {
                    languages(number).into_iter().map(move |language| caption(number, language).target())
                })
                .collect()
        };
        let listed = strings(&|number| listed_languages(number).collect());
        let unlisted = strings(&|number| unlisted_languages(number).collect());
        assert_eq!(listed.len(), 79);
        assert_eq!(listed.len() + unlisted.len(), 400);
        let all: BTreeSet<_> = listed.iter().chain(&unlisted).collect();
        assert_eq!(all.len(), 400);
    }

    #[test]
    fn the_captions_hold_what_breaks_careless_readers() {
        let all: Vec<Caption> = (0..CONCEPTS)
            .flat_map(|number| listed_languages(number).map(move |language| caption(number, language)))
            .collect();
        for needle in [",", "\"", "\n", "\t", "\u{a0}"] {
            assert!(all.iter().any(|caption| caption.text.contains(needle)), "{needle:?}");
        }
        for title in ["NA", "null", "nan"] {
            assert!(all.iter().any(|caption| caption.title == title), "{title}");
        }
        let languages: BTreeSet<_> = all.iter().map(|caption| caption.language).collect();
        assert_eq!(languages.len(), 10);
    }
}
