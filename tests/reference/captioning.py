"""Creates tiny captioning checkpoints and the captions that transformers generates with them.

Run from the repository root, with torch, transformers (5.x), tokenizers and safetensors from PyPI:

    python tests/reference/captioning.py            # writes tests/reference/captioning/
    python tests/reference/captioning.py DIR        # writes DIR/expected.json and DIR/pixels.safetensors for any checkpoint

Each folder is a `VisionEncoderDecoderModel` with its tokenizer. `expected.json` has the token ids and texts of the same images for many
settings of generation, computed in f32. A setting whose ids differ in f64 would depend on rounding; the script refuses it.
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    DeiTConfig,
    DeiTModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForCausalLM,
    SwinConfig,
    SwinModel,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

torch.set_num_threads(1)
OUT = pathlib.Path("tests/reference/captioning")
IMAGES = 5
TEXT = [
    "a red dog runs on the green grass near two small trees",
    "two men ride brown horses over a snowy hill, and one waves",
    "the old church of the town, seen from the river at night",
    "a close up of a plate with rice, beans and fish on a table",
]

BEAMS = [
    {"num_beams": beams, "early_stopping": stop, "length_penalty": penalty}
    for beams in (2, 3, 4, 5)
    for stop in (False, True, "never")
    for penalty in (1.0, 0.0, 2.5, -0.5)
]
OPTIONS = [
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1, "max_length": 9},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.7},
    {"min_length": 6},
    {"min_new_tokens": 7},
    {"max_new_tokens": 5},
    {"forced_eos_token_id": 2},
    {"suppress_tokens": [5, 9, 11, 20]},
    {"begin_suppress_tokens": [4, 6, 8, 10, 12, 14]},
    {"eos_token_id": [2, 7, 13]},
]
SETTINGS = (
    [{}]
    + BEAMS
    + OPTIONS
    + [{**option, "num_beams": 3} for option in OPTIONS]
    + [
        {"num_beams": 4, "no_repeat_ngram_size": 3, "repetition_penalty": 1.2, "early_stopping": True, "length_penalty": 2.0},
        {"num_beams": 3, "forced_bos_token_id": 6},
    ]
)


# The processor is written by hand, because transformers needs Pillow and torchvision to make one.
PROCESSOR = {
    "do_resize": True, "size": {"height": 16, "width": 16}, "resample": 2, "do_center_crop": False, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.2, 0.5, 0.9], "image_std": [0.3, 0.5, 0.7],
}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def tokenizer(folder, special):
    """Trains a byte-level BPE whose vocabulary is small, so that random models end their captions."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=48, special_tokens=special, show_progress=False))
    names = {"bos_token": special[0], "pad_token": special[1], "eos_token": special[2]}
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    fast.save_pretrained(folder)
    return len(fast)


def randomise(model, seed):
    """Randomises all weights, with large positions and updates, so that a caption does not repeat one token for ever."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            norm = any(part in name.lower() for part in ("norm", "ln_")) and not name.endswith("bias")
            noise = torch.randn(value.shape, generator=generator)
            positions = name.startswith("decoder") and ("wpe" in name or "position_embeddings" in name)
            updates = name.startswith("decoder") and any(part in name for part in ("c_proj.weight", "output.dense.weight"))
            words = name.startswith("decoder") and ("wte" in name or "word_embeddings" in name)
            spread = 1.2 if positions else 0.7 if updates else 0.25 if words else 0.35
            value.copy_(spread * noise + (0.8 if norm else 0.0))
    return model.eval()


def images(side):
    """Returns the images, `[IMAGES, side, side, 3]`: noise, two of them with a gradient, and all of different brightness."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (IMAGES, side, side, 3), generator=generator, dtype=torch.uint8)
    ramp = torch.linspace(0, 190, side).to(torch.uint8)
    pixels[0] = pixels[0] // 4 + ramp[:, None, None]
    pixels[1] = pixels[1] // 4 + ramp[None, :, None]
    pixels[3] = pixels[3] // 4
    pixels[4] = pixels[4] // 3 + 160
    return pixels


def normalise(pixels, processor):
    mean, std = torch.tensor(processor["image_mean"]), torch.tensor(processor["image_std"])
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)


def generate(model, inputs, settings):
    with torch.no_grad():
        rows = model.generate(inputs, **settings).tolist()
    eos = settings.get("eos_token_id", model.generation_config.eos_token_id)
    eos = eos if isinstance(eos, list) else [eos]
    trimmed = []
    for row in rows:
        row = row[1:]
        ends = [at for at, token in enumerate(row) if token in eos]
        trimmed.append(row[: ends[0] + 1] if ends else row)
    return trimmed


def reference(folder, settings=SETTINGS, strict=True):
    model = VisionEncoderDecoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    exact = VisionEncoderDecoderModel.from_pretrained(folder, dtype=torch.float64).eval()
    words = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    pixels = images(config["encoder"]["image_size"])
    inputs = normalise(pixels, json.loads((folder / "preprocessor_config.json").read_text()))
    cases, dropped = [], 0
    for one in settings:
        ids = generate(model, inputs, one)
        if generate(exact, inputs.double(), one) != ids:
            dropped += 1
            assert not strict, f"{folder}: {one} depends on rounding"
            continue
        texts = [words.decode(row, skip_special_tokens=True) for row in ids]
        cases.append({"settings": one, "ids": ids, "texts": texts})
    (folder / "expected.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    save_file({"pixels": pixels}, folder / "pixels.safetensors")
    lengths = sorted({len(row) for case in cases for row in case["ids"]})
    distinct = len({tuple(map(tuple, case["ids"])) for case in cases})
    print(f"{folder.name}: {len(cases)} settings, {distinct} distinct results, lengths {lengths}, {dropped} dropped", flush=True)


def choose_seed(model, variety):
    """Returns a seed whose captions differ between settings and images, and of which some end early and some do not. Of the
    greedy captions at least `variety[1]` have `variety[0]` distinct tokens."""
    inputs = normalise(images(16), PROCESSOR)
    probes = [{}, {"num_beams": 4}, {"num_beams": 4, "length_penalty": 2.5}, {"num_beams": 3, "early_stopping": True}]
    for seed in range(1, 5000):
        randomise(model, seed)
        first = generate(model, inputs, probes[0])
        is_varied = sum(len(set(row)) >= variety[0] for row in first) >= variety[1]
        captions, lengths = min(IMAGES - 1, variety[0] + 2), min(3, variety[0] + 1)
        if not is_varied or len(set(map(tuple, first))) < captions or len({len(row) for row in first}) < lengths:
            continue
        found = [generate(model, inputs, probe) for probe in probes]
        if len({str(rows) for rows in found}) == len(probes):
            return seed
    raise SystemExit("no seed gives varied captions")


def checkpoint(name, encoder, decoder, processor, dtype=torch.float32, legacy=False, variety=(5, 3)):
    folder = OUT / name
    folder.mkdir(parents=True)
    special = ["<s>", "<pad>", "</s>"]
    size = tokenizer(folder, special)
    assert size <= decoder.config.vocab_size, size
    model = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder)
    settings = model.generation_config
    settings.decoder_start_token_id, settings.bos_token_id = 0, 0
    settings.eos_token_id, settings.pad_token_id, settings.max_length = 2, 1, 12
    randomise(model, choose_seed(model, variety))
    model.to(dtype).save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", {**PROCESSOR, "image_processor_type": processor})
    if legacy:
        # Older versions kept the settings of generation in `config.json`, some in that of the decoder.
        (folder / "generation_config.json").unlink()
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config |= {"decoder_start_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "max_length": 12, "num_beams": 2}
        config["decoder"] |= {"no_repeat_ngram_size": 2, "num_beams": 3, "top_k": 50, "do_sample": False}
        write_json(path, config)
    reference(folder)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    vit = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4)
    gpt2 = dict(n_layer=2, n_head=2, n_positions=32, vocab_size=48, bos_token_id=0, eos_token_id=2, add_cross_attention=True)
    bert = dict(
        num_hidden_layers=2, num_attention_heads=2, vocab_size=48, max_position_embeddings=32, is_decoder=True,
        add_cross_attention=True, bos_token_id=0, eos_token_id=2, pad_token_id=1, type_vocab_size=1,
    )
    plain = "ViTImageProcessor"
    checkpoint("vit_gpt2", ViTModel(ViTConfig(**vit)), GPT2LMHeadModel(GPT2Config(n_embd=16, **gpt2)), plain)
    checkpoint(
        "vit_gpt2_wide",
        ViTModel(ViTConfig(**vit), add_pooling_layer=False),
        GPT2LMHeadModel(GPT2Config(n_embd=24, n_inner=20, activation_function="gelu", **gpt2)),
        plain, dtype=torch.bfloat16, legacy=True,
    )
    checkpoint(
        "deit_roberta",
        DeiTModel(DeiTConfig(**vit)),
        RobertaForCausalLM(RobertaConfig(hidden_size=16, intermediate_size=24, **bert)),
        "DeiTImageProcessor", variety=(2, 2),
    )
    checkpoint(
        "swin_bert",
        SwinModel(SwinConfig(embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=2, image_size=16, patch_size=2)),
        BertLMHeadModel(BertConfig(hidden_size=12, intermediate_size=20, hidden_act="relu", **bert)),
        plain, variety=(1, 1),
    )


if len(sys.argv) > 1:
    reference(pathlib.Path(sys.argv[1]), [{}] + BEAMS[::6], strict=False)
else:
    main()
