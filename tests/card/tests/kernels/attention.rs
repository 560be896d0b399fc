//! Attention for odd token counts and all widths of a head.

use crate::card::{Arg, Card};
use crate::nvrtc::Source;
use crate::values::{check, noise, round};

pub struct Attention {
    pub images: usize,
    pub heads: usize,
    pub tokens: usize,
    pub width: usize,
    /// Tokens of an image for which attention is computed.
    pub queries: usize,
    packed: Vec<f32>,
    bias: Option<Bias>,
}

/// Bias of scores: a table of each head, and places of queries and keys.
struct Bias {
    tables: Vec<f32>,
    entries: usize,
    places: [Vec<i32>; 2],
}

impl Bias {
    fn new(heads: usize, tokens: usize) -> Self {
        let entries = 2 * tokens + 1;
        // Some differences lie outside of the table.
        let place = |token: usize| (token * 7 % (2 * tokens) + token % 2) as i32;
        let places = [(0..tokens).map(|token| place(token) + 3).collect(), (0..tokens).map(place).collect()];
        Self { tables: noise(8, heads * entries).into_iter().map(|value| value * 3.0).collect(), entries, places }
    }

    fn of(&self, head: usize, query: usize, key: usize) -> f64 {
        let place = (self.places[0][query] - self.places[1][key]).clamp(0, self.entries as i32 - 1);
        f64::from(self.tables[head * self.entries + place as usize])
    }
}

impl Attention {
    pub fn new(images: usize, heads: usize, tokens: usize, width: usize) -> Self {
        // Scores differ by a few units: some keys count much more than others.
        let packed =
            noise(7, images * tokens * 3 * heads * width).into_iter().map(|value| round(value * 1.5)).collect();
        Self { images, heads, tokens, width, queries: tokens, packed, bias: None }
    }

    pub fn source(width: usize) -> Source {
        Source::new(&["card/common.cu", "model/kernels/attention.cu"], &[("WIDTH", width as u32)])
    }

    fn with_bias(self) -> Self {
        Self { bias: Some(Bias::new(self.heads, self.tokens)), ..self }
    }

    pub fn try_run(&self, source: &Source) -> (Vec<String>, Vec<f32>) {
        let mut card = Card::new();
        let count = self.images * self.queries * self.heads * self.width;
        let (packed, out) = (card.bf16(&self.packed), card.results(count));
        let scale = std::f32::consts::LOG2_E / (self.width as f32).sqrt();
        let mut info = vec![self.tokens as u32, self.heads as u32, scale.to_bits(), self.queries as u32];
        let mut args = vec![Arg::Pointer(packed)];
        if let Some(Bias { tables, entries, places }) = &self.bias {
            let tables: Vec<f32> = tables.iter().map(|value| value * (self.width as f32).sqrt()).collect();
            let padded = |places: &Vec<i32>| {
                let mut places = places.clone();
                places.resize(self.tokens.next_multiple_of(64), 0);
                places
            };
            let places: Vec<u8> = places.iter().flat_map(padded).flat_map(i32::to_le_bytes).collect();
            args.extend([card.f32(&tables), card.bytes(&places)].map(Arg::Pointer));
            info.extend([*entries as u32, 0]);
        }
        args.extend([Arg::Pointer(out), Arg::Info(info)]);
        let blocks = self.images * self.heads * self.queries.div_ceil(64);
        let shared = 5 * 64 * (2 * self.width.next_multiple_of(16) as u32 + 16);
        let problems = card.try_run(source, blocks, 128, shared, &args);
        let found = card.read(out, count);
        (problems, found)
    }

    fn check(&self) {
        let what = format!(
            "{} images, {} heads, {} of {} tokens, width {}",
            self.images, self.heads, self.queries, self.tokens, self.width
        );
        let mut definitions = vec![("WIDTH", self.width as u32)];
        definitions.extend(self.bias.iter().map(|_| ("BIASED", 1)));
        let source = Source::new(&["card/common.cu", "model/kernels/attention.cu"], &definitions);
        let (problems, found) = self.try_run(&source);
        assert!(problems.is_empty(), "{what}: {problems:#?}");
        let hidden = self.heads * self.width;
        let mut exact = vec![0.0; found.len()];
        for image in 0..self.images {
            for head in 0..self.heads {
                let line = |token: usize, part: usize| {
                    let at = (image * self.tokens + token) * 3 * hidden + part * hidden + head * self.width;
                    &self.packed[at..at + self.width]
                };
                for query in 0..self.queries {
                    let dot = |key: usize| {
                        let pairs = line(query, 0).iter().zip(line(key, 1));
                        f64::from(pairs.map(|(one, other)| one * other).sum::<f32>()) / (self.width as f64).sqrt()
                            + self.bias.as_ref().map_or(0.0, |bias| bias.of(head, query, key))
                    };
                    let scores: Vec<f64> = (0..self.tokens).map(dot).collect();
                    let most = scores.iter().copied().fold(f64::MIN, f64::max);
                    let shares: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                    let sum: f64 = shares.iter().sum();
                    let to = (image * self.queries + query) * hidden + head * self.width;
                    for (key, share) in shares.iter().enumerate() {
                        let values = line(key, 2);
                        exact[to..to + self.width]
                            .iter_mut()
                            .zip(values)
                            .for_each(|(to, value)| *to += share / sum * f64::from(*value));
                    }
                }
            }
        }
        // Shares are rounded to bf16 before they meet the values.
        check(&what, &found, &exact, 0.01);
    }
}

#[test]
fn attention_is_right_for_any_token_count() {
    for [images, heads, tokens] in [[3, 2, 1], [1, 1, 16], [2, 3, 17], [1, 2, 64], [1, 1, 65], [2, 1, 197], [1, 1, 257]]
    {
        Attention::new(images, heads, tokens, 64).check();
    }
}

#[test]
fn attention_of_the_first_tokens_alone_is_right() {
    for [queries, tokens] in [[1, 1], [1, 197], [1, 70], [17, 70], [65, 130]] {
        Attention { queries, ..Attention::new(2, 2, tokens, 64) }.check();
    }
}

#[test]
fn bias_is_added_to_scores() {
    for [images, heads, tokens, width] in [
        [2, 3, 1, 64],
        [1, 2, 17, 64],
        [2, 2, 65, 64],
        [1, 2, 197, 64],
        [1, 1, 70, 8],
        [1, 1, 130, 80],
        [1, 1, 70, 128],
    ] {
        Attention::new(images, heads, tokens, width).with_bias().check();
    }
    Attention { queries: 1, ..Attention::new(2, 2, 197, 64).with_bias() }.check();
}

#[test]
fn attention_is_right_for_1370_tokens() {
    Attention::new(1, 1, 1370, 64).check();
}

#[test]
fn attention_is_right_for_many_widths() {
    for width in [8, 16, 24, 32, 48, 72, 80, 88, 96, 112, 128] {
        Attention::new(1, 2, 70, width).check();
    }
}
