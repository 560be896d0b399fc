"""Creates a tiny encoder in the layout of sentence-transformers, and what sentence-transformers makes of it.

    pip install torch==2.15.0 transformers==5.24.0 sentence-transformers==6.2.0
    python3 tests/reference/sentence.py

It writes tests/reference/text/sentence: BERT with a cased WordPiece tokenizer, `do_lower_case` in `sentence_bert_config.json`, two
prompts of which one is the default, mean pooling and unit length. `expected.safetensors` holds, with one row for each caption of
tests/reference/text/captions.json:

    default     encode(captions): the default prompt
    plain       encode(captions, prompt="")
    truncated   encode(captions, truncate_dim=12)

`expected_ids.json` holds the token ids of `captions`, without a prompt: of `sentence` (sentence-transformers), and of `bert`
(tests/reference/text/bert as transformers reads it) with each `tokenizer_config.json` in the file.
"""

import json
import os
import pathlib
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertConfig, BertModel

HERE = pathlib.Path(__file__).parent / "text"
CAPTIONS = json.loads((HERE / "captions.json").read_text())
PROMPTS = {"query": "Query: ", "passage": "Passage: "}
TOKENIZER_CONFIGS = [
    {},
    {"do_lower_case": True},
    {"do_lower_case": False},
    {"do_lower_case": False, "tokenizer_class": "BertTokenizer"},
    {"do_lower_case": False, "tokenizer_class": "PreTrainedTokenizerFast"},
]


def write_json(path: pathlib.Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def cased_wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.StripAccents()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    texts = [text for caption in CAPTIONS if len(caption) < 1000 for text in (caption, caption.lower())]
    tokenizer.train_from_iterator(texts + list(PROMPTS.values()), trainers.WordPieceTrainer(vocab_size=320, special_tokens=special))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def main() -> None:
    torch.manual_seed(5)
    directory = HERE / "sentence"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    tokenizer = cased_wordpiece()
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32, pad_token_id=0,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    for name, value in model.named_parameters():
        norm = "LayerNorm.weight" in name
        value.data = torch.randn_like(value) * 0.3 + (1.0 if norm else 0.0)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, directory / "model.safetensors", {"format": "pt"})
    config.to_json_file(directory / "config.json", use_diff=False)
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 32, "pad_token": "[PAD]"})
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    kind = "sentence_transformers.models."
    write_json(directory / "modules.json", [
        {"idx": i, "name": str(i), "path": path, "type": f"{kind}{name}"} for i, (path, name) in enumerate(parts)
    ])
    write_json(directory / "1_Pooling/config.json", {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})
    (directory / "2_Normalize").mkdir()
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": True})
    write_json(directory / "config_sentence_transformers.json", {"prompts": PROMPTS, "default_prompt_name": "query"})

    sentence = SentenceTransformer(str(directory), device="cpu")
    expected = {
        "default": sentence.encode(CAPTIONS),
        "plain": sentence.encode(CAPTIONS, prompt=""),
        "truncated": sentence.encode(CAPTIONS, truncate_dim=12),
    }
    save_file({name: torch.from_numpy(rows).contiguous() for name, rows in expected.items()}, directory / "expected.safetensors")
    ids = {"sentence": [sentence.tokenizer(caption, truncation=True, max_length=32)["input_ids"] for caption in CAPTIONS], "bert": []}
    for settings in TOKENIZER_CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / "bert"
            shutil.copytree(HERE / "bert", copy)
            write_json(copy / "tokenizer_config.json", settings)
            bert = AutoTokenizer.from_pretrained(copy)
            rows = [bert(caption, truncation=True, max_length=64)["input_ids"] for caption in CAPTIONS]
            ids["bert"].append({"tokenizer_config": settings, "ids": rows})
    (directory / "expected_ids.json").write_text(json.dumps(ids, separators=(",", ":")) + "\n")
    (directory / "2_Normalize").rmdir()


if __name__ == "__main__":
    main()
