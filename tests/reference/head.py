"""Creates the reference of `train`: 20 SGD steps of a linear head in torch, and the schedules of transformers.

Run:  python tests/reference/head.py
Needs torch, transformers and safetensors. Writes head.safetensors and head.json to its own directory.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

HERE = Path(__file__).parent
CLASSES, DIM, STEPS, MICRO, ROWS = 50, 16, 20, 2, 8
PEAK, WARMUP, MOMENTUM, DECAY, CLIP = 0.3, 4, 0.9, 0.01, 1.05
SMOOTHING = 0.1
SCHEDULES = {
    "linear": lambda o: get_linear_schedule_with_warmup(o, WARMUP, STEPS),
    "constant": lambda o: get_constant_schedule_with_warmup(o, WARMUP),
    "cosine": lambda o: get_cosine_schedule_with_warmup(o, WARMUP, STEPS),
}

generator = torch.Generator().manual_seed(11)
features = torch.randn(STEPS, MICRO, ROWS, DIM, generator=generator)
labels = torch.randint(0, CLASSES, (STEPS, MICRO, ROWS), generator=generator)
head = torch.nn.Linear(DIM, CLASSES)
with torch.no_grad():
    head.weight.copy_(torch.randn(CLASSES, DIM, generator=generator) * 0.3)
    head.bias.copy_(torch.randn(CLASSES, generator=generator) * 0.1)
start = {"start.weight": head.weight.detach().clone(), "start.bias": head.bias.detach().clone()}



def train(loss_of):
    """Trains 20 steps; returns the final state, and the loss, rate and gradient norm of each step."""
    head = torch.nn.Linear(DIM, CLASSES)
    with torch.no_grad():
        head.weight.copy_(start["start.weight"])
        head.bias.copy_(start["start.bias"])
    sgd = torch.optim.SGD(head.parameters(), lr=PEAK, momentum=MOMENTUM, weight_decay=DECAY)
    schedule = SCHEDULES["linear"](sgd)
    losses, rates, norms = [], [], []
    for step in range(STEPS):
        total = 0.0
        for micro in range(MICRO):
            loss = loss_of(head(features[step, micro]), step, micro)
            (loss / MICRO).backward()
            total += loss.item() / MICRO
        norms.append(torch.nn.utils.clip_grad_norm_(head.parameters(), CLIP).item())
        rates.append(schedule.get_last_lr()[0])
        losses.append(total)
        sgd.step()
        schedule.step()
        sgd.zero_grad()
    state = {
        "weight": head.weight.detach(),
        "bias": head.bias.detach(),
        "weight.momentum": sgd.state[head.weight]["momentum_buffer"],
        "bias.momentum": sgd.state[head.bias]["momentum_buffer"],
    }
    return state, losses, rates, norms


cross_entropy = torch.nn.functional.cross_entropy
state, losses, rates, norms = train(lambda logits, step, micro: cross_entropy(logits, labels[step, micro]))

# One to three classes a row with equal shares, and label smoothing; -1 fills rows with fewer classes.
several = torch.stack([torch.randperm(CLASSES, generator=generator)[:3] for _ in range(STEPS * MICRO * ROWS)])
counts = torch.randint(1, 4, (STEPS * MICRO * ROWS, 1), generator=generator)
several = torch.where(torch.arange(3) < counts, several, -1).reshape(STEPS, MICRO, ROWS, 3)


def soft_loss(logits, step, micro):
    targets = torch.zeros(ROWS, CLASSES)
    for target, classes in zip(targets, several[step, micro]):
        classes = classes[classes >= 0]
        target[classes] = 1 / len(classes)
    return cross_entropy(logits, targets, label_smoothing=SMOOTHING)


soft, soft_losses, _, soft_norms = train(soft_loss)

clipped = sum(norm > CLIP for norm in norms)
assert 3 <= clipped <= STEPS - 3, (clipped, norms)
save_file(
    {
        **start,
        "features": features,
        "labels": labels.int(),
        **state,
        "soft.labels": several.int(),
        **{f"soft.{name}": values for name, values in soft.items()},
    },
    HERE / "head.safetensors",
)


def rates_of(make):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler = make(optimizer)
    out = []
    for _ in range(STEPS + 2):
        out.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return out


(HERE / "head.json").write_text(
    json.dumps(
        {
            "momentum": MOMENTUM,
            "weight_decay": DECAY,
            "clip_norm": CLIP,
            "peak": PEAK,
            "warmup_steps": WARMUP,
            "losses": losses,
            "rates": rates,
            "norms": norms,
            "label_smoothing": SMOOTHING,
            "soft_losses": soft_losses,
            "soft_norms": soft_norms,
            "schedules": {name: rates_of(make) for name, make in SCHEDULES.items()},
        },
        indent=1,
    )
    + "\n"
)
