//! Scores generated captions against reference captions: BLEU-4, METEOR (exact + stem) and `CIDEr`.
//!
//! BLEU (Papineni et al. 2002) and `CIDEr` (its variant `CIDEr-D`, Vedantam et al. 2015) follow the formulas of pycocoevalcap, METEOR
//! those of NLTK. METEOR has two of its stages here: equal words, then words of equal stem (Snowball, English). Its stage of
//! `WordNet` synonyms is absent, so its values are lower than those of a full METEOR and are named so.
//!
//! [`tokenize`] follows the tokenizer of the Penn Treebank that pycocoevalcap runs. Unlike there, a character of a script without
//! spaces between words, such as Han, is a token by itself.

mod bleu;
mod cider;
mod evaluate;
mod meteor;
mod ngrams;
#[cfg(test)]
mod reference;
mod tokens;

pub use evaluate::{CaptionEvaluateError, CaptionScores, References, Scoring, evaluate_caption_files};
pub use tokens::tokenize;
