"""Creates tiny text encoders, and reference embeddings of captions that are difficult to tokenize.

    pip install torch==2.15.0 transformers==5.24.0 tokenizers
    python3 tests/reference/text.py [MODEL_DIRECTORY]
    python3 tests/reference/text.py padding

Without an argument it writes tests/reference/text/{bert,xlmr,mini}, each a directory in Hugging Face layout:

    bert    BERT in f32, lower-case WordPiece; like LaBSE: prefix `bert.`, a pooler, CLS pooling, a dense layer with tanh, unit length
    xlmr    XLM-RoBERTa in f16, Unigram; no files of sentence-transformers, and `position_ids` as saved by older versions
    mini    BERT in f32 with the tokenizer of `xlmr`; like MiniLM: mean pooling, not normalised, at most 16 tokens

Each directory has an `expected.safetensors` with one row for each caption in tests/reference/text/captions.json. With a directory
the script writes `expected.safetensors` to it, with mean pooling and unit length.

`xlmr/padding.json` has the embeddings of captions that spell out the token of padding; with `padding` only this file is written.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

HERE = pathlib.Path(__file__).parent / "text"

CAPTIONS = [
    "Sagrada Família [SEP] The basilica's nave, seen from the west",
    "A dog",
    "A dog ",
    "",
    " ",
    "ประเทศไทย [SEP] ภาพถ่ายของวัดพระแก้วในกรุงเทพมหานคร",
    "富士山 [SEP] 河口湖から見た富士山の写真。２０１９年",
    "برج إيفل [SEP] صورة للبرج ليلاً",
    "עברית and English מעורבים 123 (في القاهرة) ok",
    "\u202eright to left\u202c and back",
    "🐶🐕‍🦺 dogs 👨‍👩‍👧‍👦 & flags 🇺🇳",
    "New\nline\ttab\u00a0no-break \u3000 wide",
    "e\u0301 is é, ﬁ is fi, Å is \u212b",
    "हिन्दी [SEP] ताज महल का चित्र",
    "\"quoted\", with 'marks'; <tags> & %20 percent_encoded_name.jpg",
    "x" * 300,
    "word " * 2000,
    "語" * 10_000,
    "\u0000\u0007\ufeff\ufffd control",
    "[SEP] [CLS] <s> </s> [MASK] <mask> [PAD]",
    "Ελληνικά Русский Հայերեն ქართული 한국어 Tiếng Việt",
]


PADDED = ["<pad>", "two <pad> dogs <pad><pad> on a beach", "A dog <pad>"]


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CAPTIONS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    text = [caption for caption in CAPTIONS if len(caption) < 1000]
    trainer = trainers.UnigramTrainer(vocab_size=360, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def randomise(model: torch.nn.Module) -> None:
    """Randomises all weights with a larger variance than at initialisation, so that each one affects the result."""
    for name, value in model.named_parameters():
        norm = "LayerNorm.weight" in name
        value.data = torch.randn_like(value) * (0.3 if norm or value.dim() == 1 else 0.25) + (1.0 if norm else 0.0)


def states(model, tokenizer: Tokenizer, caption: str, most: int):
    tokenizer.no_padding()
    tokenizer.enable_truncation(most)
    ids = tokenizer.encode(caption).ids
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))[0][0]


def write(directory: pathlib.Path, tensors: dict, rows: list, config, tokenizer: Tokenizer) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, directory / "model.safetensors", {"format": "pt"})
    config.to_json_file(directory / "config.json", use_diff=False)
    tokenizer.no_truncation()
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    save_file({"embeddings": torch.stack(rows).contiguous()}, directory / "expected.safetensors")


def write_json(path: pathlib.Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def bert(vocabulary: int, most: int) -> BertModel:
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=most, pad_token_id=0,
    )
    model = BertModel(config).eval()
    randomise(model)
    return model


def main() -> None:
    torch.manual_seed(11)
    HERE.mkdir(exist_ok=True)
    write_json(HERE / "captions.json", CAPTIONS)
    kind = "sentence_transformers.models."

    tokenizer, directory = wordpiece(), HERE / "bert"
    model = bert(tokenizer.get_vocab_size(), 64)
    dense = torch.nn.Linear(32, 24)
    rows = [torch.tanh(dense(states(model, tokenizer, caption, 64)[0])).detach() for caption in CAPTIONS]
    rows = [torch.nn.functional.normalize(row, dim=0) for row in rows]
    tensors = {f"bert.{name}": value for name, value in model.state_dict().items()}
    write(directory, tensors, rows, model.config, tokenizer)
    parts = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    write_json(directory / "modules.json", [
        {"idx": i, "name": str(i), "path": path, "type": f"{kind}{name}"} for i, (path, name) in enumerate(parts)
    ])
    write_json(directory / "1_Pooling/config.json", {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    write_json(directory / "2_Dense/config.json", {"in_features": 32, "out_features": 24, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"})
    save_file({f"linear.{name}": value.detach() for name, value in dense.named_parameters()}, directory / "2_Dense/model.safetensors")

    tokenizer, directory = unigram(), HERE / "xlmr"
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=80, type_vocab_size=1, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, layer_norm_eps=1e-5,
    )
    model = XLMRobertaModel(config, add_pooling_layer=False).eval()
    randomise(model)
    model = model.half().float()
    rows = [torch.nn.functional.normalize(states(model, tokenizer, caption, 78).mean(0), dim=0) for caption in CAPTIONS]
    tensors = {name: value.half() for name, value in model.state_dict().items() if "position_ids" not in name}
    tensors["embeddings.position_ids"] = torch.arange(80)[None]
    write(directory, tensors, rows, config, tokenizer)

    directory = HERE / "mini"
    model = bert(tokenizer.get_vocab_size(), 40)
    rows = [states(model, tokenizer, caption, 16).mean(0) for caption in CAPTIONS]
    write(directory, dict(model.state_dict()), rows, model.config, tokenizer)
    write_json(directory / "modules.json", [
        {"idx": i, "name": str(i), "path": path, "type": f"{kind}{name}"} for i, (path, name) in enumerate(parts[:2])
    ])
    write_json(directory / "1_Pooling/config.json", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": False})


def embed(directory: pathlib.Path, captions: list) -> torch.Tensor:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    rows = [torch.nn.functional.normalize(states(model, tokenizer, caption, 512).mean(0), dim=0) for caption in captions]
    return torch.stack(rows).contiguous()


def write_padding() -> None:
    rows = embed(HERE / "xlmr", PADDED).tolist()
    write_json(HERE / "xlmr/padding.json", {"captions": PADDED, "embeddings": [[round(value, 7) for value in row] for row in rows]})


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
        write_padding()
    elif sys.argv[1] == "padding":
        write_padding()
    else:
        directory = pathlib.Path(sys.argv[1])
        save_file({"embeddings": embed(directory, CAPTIONS)}, directory / "expected.safetensors")
