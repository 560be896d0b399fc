"""Compares the frozen encoders on a CPU with PyTorch: this program, PyTorch in f32 and in bf16 in turn, on the same cores.

Run:  python tests/peers/encoders.py PROGRAM [--vision DIR] [--vit-base] [--text DIR --captions FILE] [--rounds N]
Needs torch and transformers. DIR is a checkpoint in Hugging Face layout, FILE has a caption in each line. `--vit-base` measures
ViT-B/16 with random weights. Prints images or captions for each second of the clock and for each CPU second, the median
and the best over the rounds, and the largest difference of the vectors relative to the largest value. PyTorch gets pixels that are
normalised already and token ids, sorted by length, in batches of 8 images or 32 captions; this program normalises pixels itself.
To use fewer cores, start it with `taskset`.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import tempfile
import time

import torch
import transformers

IMAGES, PASSES = 16, 2
FORMATS = {"PyTorch f32": torch.float32, "PyTorch bf16": torch.bfloat16}


def run_program(program: str, command: list[str], vectors: pathlib.Path, count: int) -> tuple[float, float]:
    """Returns rates by the clock and by CPU time. Start and warm-up are subtracted by a second run."""
    spent = []
    for passes in (1, 1 + PASSES):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        arguments = [program, "--json", "bench", *command, vectors, "--precision", "f32", "--passes", str(passes)]
        report = json.loads(subprocess.run(arguments, check=True, capture_output=True).stdout)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return (1 + PASSES) * count / report["seconds"], PASSES * count / (spent[1] - spent[0])


def run_torch(forward, count: int) -> tuple[float, float]:
    clock, cpu = time.perf_counter(), time.process_time()
    for _ in range(PASSES):
        forward()
    return PASSES * count / (time.perf_counter() - clock), PASSES * count / (time.process_time() - cpu)


def compare(title: str, program: str, command: list[str], output: str, forwards: dict, count: int, rounds: int) -> None:
    rates = {name: [] for name in ["this program", *forwards]}
    with tempfile.TemporaryDirectory() as folder:
        vectors = pathlib.Path(folder, "vectors.f32")
        for _ in range(rounds):
            rates["this program"].append(run_program(program, [*command, output], vectors, count))
            for name, forward in forwards.items():
                rates[name].append(run_torch(forward, count))
        found = torch.frombuffer(bytearray(vectors.read_bytes()), dtype=torch.float32).reshape(count, -1)
    wanted = forwards["PyTorch f32"]()
    difference = (found - wanted).abs().max() / wanted.abs().max()
    print(f"{title}: largest difference {difference:.1e}")
    for name, measured in rates.items():
        clock, cpu = zip(*measured)
        print(f"  {name:13} {statistics.median(clock):7.2f}/s (best {max(clock):.2f}), "
              f"{statistics.median(cpu):7.2f} a CPU second (best {max(cpu):.2f})", flush=True)


def vision(program: str, folder: pathlib.Path, rounds: int) -> None:
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(processor[key]).reshape(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    side = 224
    images = torch.randint(0, 256, (IMAGES, side, side, 3), dtype=torch.uint8)
    pixels = (images.permute(0, 3, 1, 2) / 255 - mean) / std
    models = {name: transformers.AutoModel.from_pretrained(folder, dtype=kind).eval() for name, kind in FORMATS.items()}

    def forward(model):
        with torch.inference_mode():
            batches = [model(pixel_values=part.to(model.dtype)).last_hidden_state[:, 0] for part in pixels.split(8)]
        return torch.cat(batches).float()

    with tempfile.NamedTemporaryFile() as file:
        pathlib.Path(file.name).write_bytes(images.numpy().tobytes())
        command = ["forward", "--checkpoint", folder, "--pool", "cls", "--size-px", str(side), "--pixels", file.name]
        forwards = {name: lambda model=model: forward(model) for name, model in models.items()}
        compare(f"{folder.name}, {side} px", program, command, "--features", forwards, IMAGES, rounds)


def text(program: str, folder: pathlib.Path, file: pathlib.Path, rounds: int) -> None:
    captions = file.read_text().splitlines()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>")
    order = sorted(range(len(captions)), key=lambda at: len(tokenizer(captions[at]).input_ids))
    parts = [order[at : at + 32] for at in range(0, len(order), 32)]
    inputs = [tokenizer([captions[at] for at in part], padding=True, truncation=True, max_length=512,
                        return_tensors="pt", return_token_type_ids=False) for part in parts]
    models = {name: transformers.AutoModel.from_pretrained(folder, dtype=kind).eval() for name, kind in FORMATS.items()}

    def forward(model):
        vectors = torch.empty(len(captions), model.config.hidden_size)
        with torch.inference_mode():
            for part, batch in zip(parts, inputs):
                mask = batch.attention_mask.unsqueeze(-1)
                states = model(**batch).last_hidden_state.float() * mask
                vectors[part] = torch.nn.functional.normalize(states.sum(1) / mask.sum(1))
        return vectors

    command = ["embed", "--checkpoint", folder, "--captions", file]
    forwards = {name: lambda model=model: forward(model) for name, model in models.items()}
    title = f"{folder.name}, {len(captions)} captions of {sum(i.attention_mask.sum() for i in inputs)} tokens"
    compare(title, program, command, "--vectors", forwards, len(captions), rounds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--vision", type=pathlib.Path)
    parser.add_argument("--vit-base", action="store_true")
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--captions", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    if args.vision:
        vision(args.program, args.vision, args.rounds)
    if args.vit_base:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder, "vit-base")
            transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False).save_pretrained(folder)
            processor = {"do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3,
                         "image_std": [0.5] * 3, "image_processor_type": "ViTImageProcessor", "resample": 2,
                         "rescale_factor": 1 / 255, "size": {"height": 224, "width": 224}}
            (folder / "preprocessor_config.json").write_text(json.dumps(processor))
            vision(args.program, folder, args.rounds)
    if args.text:
        text(args.program, args.text, args.captions, args.rounds)


if __name__ == "__main__":
    main()
