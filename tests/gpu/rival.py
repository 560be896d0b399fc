"""Measures the speed of PyTorch on the same device. Run as `rival.py JOB ANSWER`."""

import time

import torch

from common import job_main
from reference import checkpoint, load, normalise, pooled


def finish(device):
    """Waits for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(device, passes, work, *arguments):
    """Returns the seconds of `passes` calls after one warm-up call."""
    work(*arguments)
    finish(device)
    began = time.perf_counter()
    for _ in range(passes):
        work(*arguments)
    finish(device)
    return time.perf_counter() - began


def dense(side, device):
    """Returns the rate of a large matrix product in TFLOP/s, bf16 on a GPU, f32 on the CPU."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    passes = 50 if device == "cuda" else 2
    return {"tflop_per_s": 2 * side**3 * passes / timed(device, passes, torch.matmul, left, right) / 1e12}


def save(folder, config, device):
    """Creates the checkpoint that both sides measure."""
    checkpoint(folder, **config)
    return {}


def one_pass(model, pixels, features, batch_size, device, dtype):
    """Computes features: uploads u8 from pinned memory, normalises on the device, downloads to pinned memory."""
    for first in range(0, len(pixels), batch_size):
        batch = pixels[first : first + batch_size].to(device, non_blocking=True)
        states = model(normalise(batch, dtype)).last_hidden_state
        features[first : first + batch_size].copy_(pooled(model, states), non_blocking=True)


def forward(folder, size_px, batch_sizes, rows, passes, compiled, device):
    """Returns images per second by batch size: eager or compiled, fused attention, bf16 (f32 on a CPU)."""
    cuda = device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    model = load(folder, device, dtype)
    pixels = torch.randint(0, 256, (rows, size_px, size_px, 3), dtype=torch.uint8)
    features = torch.empty(rows, model.config.hidden_size, dtype=dtype)
    if cuda:
        pixels, features = pixels.pin_memory(), features.pin_memory()
    if compiled:
        model = torch.compile(model, dynamic=False)
    rates = {}
    with torch.inference_mode():
        for batch_size in batch_sizes:
            seconds = timed(device, passes, one_pass, model, pixels, features, batch_size, device, dtype)
            rates[batch_size] = rows * passes / seconds
    return rates


def head(classes, dim, batch_size, steps, device):
    """Returns rows per second of training a linear head: f32 weights, bf16 autocast, unsplit logits, momentum SGD."""
    layer = torch.nn.Linear(dim, classes, device=device)
    sgd = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9, fused=True)
    features = torch.randn(batch_size, dim, device=device)
    labels = torch.randint(0, classes, (batch_size,), device=device)

    def step():
        with torch.autocast(device, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(layer(features), labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()

    return {"rows_per_s": batch_size * steps / timed(device, steps, step)}


if __name__ == "__main__":
    job_main({"dense": dense, "save": save, "forward": forward, "head": head})
