"""Creates tiny checkpoints that pair an image backbone with a text tower, and what transformers makes of them.

Run from the repository root, with torch, torchvision, transformers (5.24), tokenizers, safetensors, pillow and numpy from PyPI:

    python tests/reference/paired.py

It writes tests/reference/paired/: a small corpus (`images.tsv`, `ids.tsv` and `captions.csv` in the published layout), and the
checkpoints

    clip        byte-level BPE; the end of the text is the highest token, as in the first published configurations
    metaclip_2  SentencePiece with the special tokens of XLM-R; the end of the text is token 2
    altclip     the tokenizer of `metaclip_2`; an XLM-R encoder with a projection of its first token
    siglip      SentencePiece; captions are padded to 64 tokens, and the last token is pooled
    siglip2     the tokenizer of Gemma, whose file does not lower the case; the files are those of `siglip` otherwise

The tokenizers library trains in no fixed order, so another run gives other tokens.

Each has an `expected.safetensors` (unit vectors of the captions) and a `ranked.csv`, the five best captions of each image by
`logits_per_image`. Images are preprocessed by the Pillow backend.
"""

import base64
import csv
import importlib
import io
import json
import pathlib
import shutil

import numpy as np
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = pathlib.Path("tests/reference/paired")

CAPTIONS = [
    "Sagrada Família [SEP] The basilica's nave, seen from the west",
    "A dog",
    "two dogs on a beach",
    "ประเทศไทย [SEP] ภาพถ่ายของวัดพระแก้วในกรุงเทพมหานคร",
    "富士山 [SEP] 河口湖から見た富士山の写真。２０１９年",
    "برج إيفل [SEP] صورة للبرج ليلاً",
    "עברית and English מעורבים 123 (في القاهرة) ok",
    "🐶🐕‍🦺 dogs 👨‍👩‍👧‍👦 & flags 🇺🇳",
    "New\nline\ttab\u00a0no-break \u3000 wide",
    "e\u0301 is é, ﬁ is fi, Å is \u212b",
    "हिन्दी [SEP] ताज महल का चित्र",
    "\"quoted\", with 'marks'; <tags> & %20 percent_encoded_name.jpg",
    "x" * 90,
    "word " * 120,
    "語" * 100,
    "Ελληνικά Русский Հայերեն ქართული 한국어 Tiếng Việt ΟΔΟΣ",
    "It's the CAPITAL letters' turn, isn't it?",
    "An end <|endoftext|> in the middle </s> of <eos> a caption",
    "photo of a red square",
    "a blue circle on green",
]


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = 0.3 * torch.randn(value.shape, generator=generator)
            centred = "norm" in name or "layrnorm" in name
            value.copy_(noise + (0.8 if centred and not name.endswith("bias") else 0.0))
        model.logit_scale.fill_(2.5)
        if hasattr(model, "logit_bias"):
            model.logit_bias.fill_(-7.0)
    return model.eval()


def byte_bpe():
    """Returns the tokenizer of CLIP, with its two special tokens last."""
    tokenizer = hf.CLIPTokenizer().backend_tokenizer
    plain = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    plain.normalizer, plain.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain.train_from_iterator(CAPTIONS, trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False))
    model = json.loads(plain.to_str())["model"]
    vocab = model["vocab"]
    for letter in alphabet:
        vocab.setdefault(letter + "</w>", len(vocab))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return hf.CLIPTokenizer(vocab=vocab, merges=[tuple(pair) for pair in model["merges"]], model_max_length=77)


def unigram(special, template, normalizer):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=330, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([caption for caption in CAPTIONS if len(caption) < 200], trainer)
    parts = [part for part in template.split() if not part.startswith("$")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(part, tokenizer.token_to_id(part)) for part in parts])
    return tokenizer


def xlm():
    normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), normalizers.Strip()])
    return unigram(["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>", normalizer)


def siglip():
    punctuation = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
    normalizer = normalizers.Sequence([
        normalizers.Lowercase(), normalizers.Replace(Regex(punctuation), ""), normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(), normalizers.NFKC(),
    ])
    return unigram(["<pad>", "</s>", "<unk>"], "$A </s>", normalizer)


def gemma():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, limit_alphabet=60, show_progress=False)
    tokenizer.train_from_iterator([caption.lower() for caption in CAPTIONS], trainer)
    # The bytes are ordinary tokens.
    plain = json.loads(tokenizer.to_str())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if token["id"] < 4]
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return tokenizer


def corpus():
    """Writes the corpus; returns its images."""
    random, images = np.random.default_rng(5), []
    with open(OUT / "images.tsv", "w") as shard, open(OUT / "ids.tsv", "w") as ids:
        ids.write("id\timage_url\n")
        for number in range(12):
            width, height = int(random.integers(20, 60)), int(random.integers(20, 60))
            row, column = np.mgrid[0:height, 0:width]
            phases = random.uniform(0.05, 0.4, (3, 2))
            waves = [np.sin(down * row + across * column + number) for down, across in phases]
            pixels = (np.stack(waves, -1) * random.uniform(40, 120, 3) + random.uniform(90, 160, 3)).clip(0, 255)
            image = Image.fromarray(pixels.astype(np.uint8))
            data = io.BytesIO()
            image.save(data, "PNG")
            url = f"https://upload.example.org/{number}.png"
            shard.write(f"{url}\t{base64.b64encode(data.getvalue()).decode()}\thttps://example.org/{number}\n")
            ids.write(f"{number}\t{url}\n")
            images.append(image)
    with open(OUT / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([["caption_title_and_reference_description"], *([caption] for caption in CAPTIONS)])
    return images


def write(name, model, processor, ids, tokenizer_config, images):
    # Another seed if two captions are so close that rounding could decide between them.
    if not any(write_seed(name, model, processor, ids, tokenizer_config, images, seed) for seed in range(20)):
        raise SystemExit(f"{name}: two captions are too close under every seed")


def write_seed(name, model, processor, ids, tokenizer_config, images, seed):
    folder = OUT / name
    randomise(model, seed).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1) + "\n")
    kind = "siglip" if name.startswith("siglip") else "clip"
    module = importlib.import_module(f"transformers.models.{kind}.image_processing_pil_{kind}")
    pillow = getattr(module, f"{'Siglip' if kind == 'siglip' else 'CLIP'}ImageProcessorPil").from_pretrained(folder)
    pixels = torch.tensor(np.stack([pillow(image, return_tensors="np").pixel_values[0] for image in images]))
    with torch.no_grad():
        # Each caption by itself, so that padding cannot depend on the batch.
        texts = torch.cat([model.get_text_features(torch.tensor([row])).pooler_output for row in ids])
        outputs = model.get_image_features(pixels).pooler_output
        texts, outputs = (torch.nn.functional.normalize(value, dim=-1) for value in (texts, outputs))
        logits = outputs @ texts.T * model.logit_scale.exp() + getattr(model, "logit_bias", 0.0)
        whole = model(input_ids=torch.tensor([ids[1]]), pixel_values=pixels).logits_per_image[:, 0]
        assert torch.allclose(whole, logits[:, 1], atol=1e-4), (whole, logits[:, 1])
    best, order = logits.sort(dim=1, descending=True)
    gap = (best[:, :5] - best[:, 1:6]).min().item() / logits.abs().max().item()
    if gap < 1e-4:
        return False
    with open(folder / "ranked.csv", "w", newline="") as file:
        rows = [[number, CAPTIONS[place]] for number, row in enumerate(order) for place in row[:5]]
        csv.writer(file).writerows([["id", "caption_title_and_reference_description"], *rows])
    save_file({"embeddings": texts.contiguous()}, folder / "expected.safetensors")
    print(name, f"smallest gap {gap:.1e},", len({tuple(row) for row in order[:, :5].tolist()}), "different rankings,",
          sum(file.stat().st_size for file in folder.iterdir()) // 1024, "KiB")
    return True


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    images = corpus()
    vision = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
    text = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3)
    small = dict(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})

    tokenizer = byte_bpe()
    tokenizer.save_pretrained(OUT / "clip")
    config = json.loads((OUT / "clip/tokenizer_config.json").read_text())
    ids = [tokenizer(caption, truncation=True).input_ids for caption in CAPTIONS]
    assert max(map(len, ids)) == 77 and all(max(row) == len(tokenizer) - 1 for row in ids)
    model = hf.CLIPModel(hf.CLIPConfig(
        vision_config=vision, projection_dim=20,
        text_config=dict(**text, vocab_size=len(tokenizer), bos_token_id=len(tokenizer) - 2, eos_token_id=2)))
    write("clip", model, hf.CLIPImageProcessor(**small), ids, config, images)

    tokenizer, folder = xlm(), OUT / "metaclip_2"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    tokenizer.enable_truncation(77)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(CAPTIONS)]
    model = hf.MetaClip2Model(hf.MetaClip2Config(
        vision_config=vision, projection_dim=20,
        text_config=dict(**text, vocab_size=tokenizer.get_vocab_size(), bos_token_id=0, eos_token_id=2, pad_token_id=1)))
    config = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 77, "eos_token": "</s>", "pad_token": "<pad>"}
    write("metaclip_2", model, hf.CLIPImageProcessor(**small), ids, config, images)

    folder = OUT / "altclip"
    folder.mkdir()
    shutil.copy(OUT / "metaclip_2/tokenizer.json", folder)
    tokenizer.enable_truncation(60)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(CAPTIONS)]
    model = hf.AltCLIPModel(hf.AltCLIPConfig(
        vision_config=vision, projection_dim=20,
        text_config=dict(**text, vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=62, project_dim=28)))
    config = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512, "eos_token": "</s>", "pad_token": "<pad>"}
    write("altclip", model, hf.CLIPImageProcessor(**small), ids, config, images)

    processor = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    for name, tokenizer, pad in (("siglip", siglip(), "</s>"), ("siglip2", gemma(), "<pad>")):
        folder = OUT / name
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        config = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 64, "do_lower_case": True,
                  "model_input_names": ["input_ids"], "pad_token": pad}
        if name == "siglip2":
            config |= {"tokenizer_class": "GemmaTokenizer", "padding_side": "right",
                       "pad_token": {"__type": "AddedToken", "content": pad, "special": True}}
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), tokenizer.normalizer])
        tokenizer.enable_truncation(64)
        tokenizer.enable_padding(length=64, pad_id=tokenizer.token_to_id(pad), pad_token=pad)
        ids = [encoding.ids for encoding in tokenizer.encode_batch(CAPTIONS)]
        assert all(len(row) == 64 for row in ids)
        model = hf.SiglipModel(hf.SiglipConfig(vision_config=vision, text_config=dict(
            **text, vocab_size=tokenizer.get_vocab_size(), projection_size=32)))
        write(name, model, processor, ids, config, images)


if __name__ == "__main__":
    main()
