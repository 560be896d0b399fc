//! Scenes of the synthetic images and their captions: forty combinations of a shape and two colours, described in ten
//! languages and eight scripts.
//!
//! No two scenes share their pair of colours, so a linear head on the features of an untrained backbone can tell them
//! apart. The last six contain only black, white and grey and are used for the grey and one-bit formats.

/// Number of scenes.
pub(super) const SCENE_COUNT: usize = 40;

/// Shape in the foreground.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Circle,
    Square,
    Triangle,
    Star,
    Ring,
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
    Shape::Ring,
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
/// Number of [`COLOURS`] that have a hue.
const HUES: usize = 9;
const BLACK: usize = 9;
/// Index of white in [`COLOURS`].
pub(super) const WHITE: usize = 10;
const GREY: usize = 11;

/// Scene: a shape in one colour on a background of another, as indices into [`SHAPES`] and [`COLOURS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scene {
    pub(super) shape: usize,
    pub(super) foreground: usize,
    pub(super) background: usize,
}

impl Scene {
    /// Returns the scene with this number; numbers from [`SCENE_COUNT`] on repeat.
    pub(super) fn from_number(number: usize) -> Self {
        const GREYS: [(usize, usize); 6] =
            [(BLACK, WHITE), (WHITE, BLACK), (GREY, WHITE), (WHITE, GREY), (BLACK, GREY), (GREY, BLACK)];
        let number = number % SCENE_COUNT;
        // 27 pairs of two hues, 7 hues on white, 6 pairs without hue. Steps of 7 visit all ten shapes.
        let shape = (number * 7) % SHAPES.len();
        let (foreground, background) = match number {
            0..27 => (number % HUES, (number + 1 + number / HUES) % HUES),
            27..34 => (number - 27, WHITE),
            _ => GREYS[number - 34],
        };
        Self { shape, foreground, background }
    }

    /// Returns a scene of which no image is rendered: its captions are in the list and in no train row.
    pub(super) fn unrendered(number: usize) -> Self {
        Self {
            shape: number % SHAPES.len(),
            foreground: number % HUES,
            background: (number + 4 + number / HUES) % HUES,
        }
    }

    /// Returns whether grey formats preserve the scene.
    pub(super) fn is_grey(self) -> bool {
        self.foreground >= HUES && self.background >= HUES
    }

    /// Returns whether one bit per pixel preserves the scene.
    pub(super) fn is_black_and_white(self) -> bool {
        self.is_grey() && self.foreground != GREY && self.background != GREY
    }
}

/// Vocabulary of one language.
pub(super) struct Language {
    /// Code in the column `language`.
    pub(super) code: &'static str,
    shapes: [&'static str; 10],
    colours: [&'static str; 12],
    /// Template: `{s}`, `{f}` and `{b}` stand for the shape, its colour and the colour of the background. It is chosen
    /// so that the words need no inflection.
    sentence: &'static str,
}

impl Language {
    /// Returns the page title, which is the name of the shape.
    pub(super) fn title(&self, scene: Scene) -> &'static str {
        self.shapes[scene.shape]
    }

    /// Returns the caption without a title.
    pub(super) fn describe(&self, scene: Scene) -> String {
        self.sentence
            .replace("{s}", self.shapes[scene.shape])
            .replace("{f}", self.colours[scene.foreground])
            .replace("{b}", self.colours[scene.background])
    }
}

/// Caption with the language and title of its page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Caption {
    pub(super) language: &'static str,
    pub(super) title: String,
    /// Text after `[SEP]`; may be empty.
    pub(super) text: String,
}

impl Caption {
    /// Returns `title [SEP] text`. With an empty text, the string ends in a space, as in the published files.
    pub(super) fn target(&self) -> String {
        format!("{} [SEP] {}", self.title, self.text)
    }
}

/// Returns how many captions of the scene are in the list: 1, 2 or 3.
pub(super) fn caption_count(number: usize) -> usize {
    1 + number % 3
}

/// Returns the caption of scene `number` in the language with index `language`. Some captions contain commas, quotes,
/// line ends, tabs or no-break spaces, as published ones do.
pub(super) fn make_caption(number: usize, language: usize) -> Caption {
    let scene = Scene::from_number(number);
    let words = &LANGUAGES[language % LANGUAGES.len()];
    let mut text = words.describe(scene);
    match number % 8 {
        1 => text.push_str(" (\"No. 7\")"),
        3 => text.push_str("\n300 px, 2014"),
        4 => text.push_str("\u{a0}–\u{a0}№\u{a0}4"),
        6 => text.push_str(", \"a\",\tb"),
        _ => {}
    }
    // Three titles that readers often take for missing values.
    let title = match (number, language == first_language(number)) {
        (3, true) => "NA",
        (11, true) => "null",
        (19, true) => "nan",
        _ => words.title(scene),
    };
    Caption { language: words.code, title: title.to_owned(), text }
}

fn first_language(number: usize) -> usize {
    (number * 3) % LANGUAGES.len()
}

/// Returns the indices of the languages in which the scene's captions are in the list.
pub(super) fn listed_languages(number: usize) -> impl Iterator<Item = usize> {
    (0..caption_count(number)).map(move |step| (first_language(number) + step) % LANGUAGES.len())
}

/// Returns the indices of the languages in which the scene's captions are not in the list.
pub(super) fn unlisted_languages(number: usize) -> impl Iterator<Item = usize> {
    (caption_count(number)..LANGUAGES.len()).map(move |step| (first_language(number) + step) % LANGUAGES.len())
}

/// Languages: English, German, French, Russian, Arabic, Hindi, Japanese, Chinese, Greek, Hebrew.
#[rustfmt::skip]
pub(super) const LANGUAGES: [Language; 10] = [
    Language {
        code: "en",
        shapes: ["Circle", "Square", "Triangle", "Star", "Ring", "Cross", "Horizontal stripes", "Vertical stripes", "Chequerboard", "Rhombus"],
        colours: ["red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "turquoise", "black", "white", "grey"],
        sentence: "{s} in {f}, on a background of {b}",
    },
    Language {
        code: "de",
        shapes: ["Kreis", "Quadrat", "Dreieck", "Stern", "Ring", "Kreuz", "Waagerechte Streifen", "Senkrechte Streifen", "Schachbrettmuster", "Raute"],
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
    fn scenes_have_distinct_colour_pairs() {
        let pairs: BTreeSet<_> = (0..SCENE_COUNT)
            .map(|number| (Scene::from_number(number).foreground, Scene::from_number(number).background))
            .collect();
        assert_eq!(pairs.len(), SCENE_COUNT);
        assert!(
            (0..SCENE_COUNT)
                .all(|number| Scene::from_number(number).foreground != Scene::from_number(number).background)
        );
        assert!((0..9).all(|number| {
            let unrendered = Scene::unrendered(number);
            unrendered.foreground != unrendered.background
                && !pairs.contains(&(unrendered.foreground, unrendered.background))
        }));
    }

    #[test]
    fn captions_are_distinct() {
        let strings = |languages: &dyn Fn(usize) -> Vec<usize>| -> Vec<String> {
            (0..SCENE_COUNT)
                .flat_map(|number| {
                    languages(number).into_iter().map(move |language| make_caption(number, language).target())
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
    fn captions_contain_special_characters() {
        let all: Vec<Caption> = (0..SCENE_COUNT)
            .flat_map(|number| listed_languages(number).map(move |language| make_caption(number, language)))
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
