"""Computes scores of captions with the usual packages: BLEU and CIDEr of pycocoevalcap, METEOR of NLTK.

    pip install --no-deps pycocoevalcap==1.2 nltk==3.10.4 numpy regex joblib click tqdm
    python tests/reference/caption_scores.py       # writes tests/reference/caption_scores.json

Texts are given as tokens, because pycocoevalcap's tokenizer is a program in Java. METEOR has no synonyms here (an empty WordNet)
and stems with Snowball's stemmer for English, as the crate does.
"""

import json
import pathlib
import random

from nltk.stem.snowball import SnowballStemmer
from nltk.translate.meteor_score import meteor_score
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider_scorer import CiderScorer

OUT = pathlib.Path("tests/reference/caption_scores.json")
WORDS = (
    "a the two dog dogs man men running runs ran red green quickly quick hill hills of on in with and rides riding horse "
    "horses is n't 's park parks tree trees seen river rivers flying flies 3.5 t-shirt happily happiness generously churches"
).split()


class NoSynonyms:
    """WordNet without any word."""

    def synsets(self, _word):
        return []


def scores(captions, references):
    bleu, cider = BleuScorer(n=4), CiderScorer(n=4, sigma=6.0)
    for caption, texts in zip(captions, references):
        bleu += (caption, texts)
        cider += (caption, texts)
    corpus, _ = bleu.compute_score(option="closest", verbose=0)
    stemmer = SnowballStemmer("english")
    meteor = [
        meteor_score([text.split() for text in texts], caption.split(), stemmer=stemmer, wordnet=NoSynonyms())
        for caption, texts in zip(captions, references)
    ]
    return {
        "captions": captions, "references": references, "bleu": corpus, "meteor": sum(meteor) / len(meteor),
        "cider": float(cider.compute_score()[0]),
    }


def sentence(rng, longest):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, longest)))


def altered(rng, text):
    words = [word for word in text.split() if rng.random() > 0.2]
    if words and rng.random() < 0.5:
        words[rng.randrange(len(words))] = rng.choice(WORDS)
    return " ".join(words)


def main():
    rng, cases = random.Random(4), []
    cases.append(scores(["a red dog", ""], [["a red dog", "the dog"], ["two men"]]))
    cases.append(scores(["a dog"], [["a dog runs on the hill"]]))
    cases.append(scores(["tree seen", "3.5"], [["of the river"], ["two men"]]))
    for images, longest in ((3, 4), (12, 9), (40, 14), (60, 25)):
        references = [[sentence(rng, longest) for _ in range(rng.randint(1, 5))] for _ in range(images)]
        captions = [altered(rng, rng.choice(texts)) for texts in references]
        cases.append(scores(captions, references))
    OUT.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    for case in cases:
        print(len(case["captions"]), [round(value, 4) for value in case["bleu"]], case["meteor"], case["cider"])


main()
