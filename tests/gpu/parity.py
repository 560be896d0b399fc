"""Checks features against transformers, the head against PyTorch, and resuming a head from its checkpoint."""

import filecmp
import json

import numpy as np
from safetensors.numpy import load_file

from common import Failed

# Tolerated ratio between our bf16 error and that of PyTorch, which rounds at other places.
BF16_FACTOR = 1.5
# A GPU may compute f32 in TF32, whose mantissa has 10 bits; bf16 has 7.
TF32_FACTOR = 0.25
CPU_F32_ERROR = 1e-4
STATE_FILES = ["head.safetensors", "optimizer.safetensors", "state.json"]


def relative(ours, reference):
    """Returns ||ours - reference|| / ||reference||; infinite if ours is not finite."""
    if ours.shape != reference.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(np.linalg.norm((ours - reference).astype(np.float64)) / np.linalg.norm(reference.astype(np.float64)))


# -- features ------------------------------------------------------------------------------------------------------


def vit(kit):
    """Returns the configuration of google/vit-base-patch16-224-in21k, or a tiny one."""
    return kit.pick(
        dict(family="vit", size_px=224, patch_px=16, hidden=768, layers=12, heads=12),
        dict(family="vit", size_px=64, patch_px=16, hidden=64, layers=2, heads=4),
    )


def dinov2(kit):
    """Returns the configuration of a DINOv2-small whose positions need no interpolation."""
    return kit.pick(
        dict(family="dinov2", size_px=224, patch_px=14, hidden=384, layers=12, heads=6),
        dict(family="dinov2", size_px=56, patch_px=14, hidden=64, layers=2, heads=4),
    )


def features(kit):
    """Checks both families in both precisions, with image counts around the batch size."""
    for config in (vit(kit), dinov2(kit)):
        features_of(kit, config)


def features_of(kit, config):
    """Checks one family."""
    family, batch_size = config["family"], kit.pick(64, 4)
    rows = 2 * batch_size + 1
    folder = kit.folder(f"parity/{family}")
    job = dict(job="features", folder=folder, config=config, rows=rows, batch_size=batch_size)
    kit.torch(f"parity-{family}-torch", "reference.py", job)
    reference = np.load(folder / "f32.npy")
    torch_error = relative(np.load(folder / "bf16.npy"), reference)
    bounds = {"bf16": BF16_FACTOR * torch_error, "f32": TF32_FACTOR * torch_error if kit.cuda else CPU_F32_ERROR}
    spread = relative(reference, np.broadcast_to(reference.mean(0), reference.shape))
    # Detects a program that ignores the image.
    kit.check(
        f"{family}: the images' features differ",
        spread > 5 * bounds["bf16"],
        f"{spread:.2f}",
        f"> {5 * bounds['bf16']:.1e}",
    )
    for precision, bound in bounds.items():
        whole, done = ours(kit, folder, config, precision, rows, batch_size, reference.shape[1])
        error = relative(whole, reference)
        kit.check(
            f"{family} {precision}: relative error to transformers f32",
            error <= bound,
            f"{error:.2e} (PyTorch bf16: {torch_error:.2e})",
            f"<= {bound:.1e}",
            done.peak_bytes,
        )
        for count in (1, batch_size + 1):
            part, _ = ours(kit, folder, config, precision, count, batch_size, reference.shape[1])
            error = relative(part, whole[:count])
            kit.check(
                f"{family} {precision}: {count} image{'s' * (count > 1)} against the run with {rows}",
                error <= bound,
                f"{error:.2e}",
                f"<= {bound:.1e}",
            )


def ours(kit, folder, config, precision, rows, batch_size, dim):
    """Returns the binary's features of the first `rows` images and its `Finished`."""
    name = f"parity-{config['family']}-{precision}-{rows}"
    size_px = config["size_px"]
    pixels, out = folder / f"pixels-{rows}.u8", folder / f"{precision}-{rows}.f32"
    np.fromfile(folder / "pixels.u8", np.uint8, rows * size_px * size_px * 3).tofile(pixels)
    answer, done = kit.bench(
        name,
        "forward",
        "--checkpoint",
        folder / "model",
        "--precision",
        precision,
        "--size-px",
        size_px,
        "--batch-size",
        batch_size,
        "--pixels",
        pixels,
        "--features",
        out,
        "--passes",
        1,
    )
    values = np.fromfile(out, "<f4")
    if (answer["rows"], answer["feature_dim"], values.size) != (rows, dim, rows * dim):
        raise Failed(f"`{name}`: {values.size} values, `{answer}`; expected {rows} x {dim}")
    return values.reshape(rows, dim), done


# -- head ----------------------------------------------------------------------------------------------------------


class Head:
    """Features and labels, and the commands that train on them."""

    def __init__(self, kit, name):
        self.kit, self.name, self.folder = kit, name, kit.folder(name)
        self.classes, self.dim, self.batch_size = kit.pick((5000, 768, 128), (200, 64, 16))
        self.draw(10 * self.batch_size)
        # High enough to learn in 50 steps; momentum and decay are active.
        self.sgd = dict(learning_rate=0.05, momentum=0.9, weight_decay=1e-3)

    def draw(self, rows):
        """Writes labels, and features around one centre for each class, as `bench head` reads them."""
        random = np.random.default_rng(11)
        labels = random.integers(0, self.classes, rows, dtype=np.uint32)
        centres = random.standard_normal((self.classes, self.dim), dtype=np.float32)
        values = centres[labels] + 0.5 * random.standard_normal((rows, self.dim), dtype=np.float32)
        # Truncated to bf16, the storage format of features, so that both sides read the same numbers in every precision.
        (values.view(np.uint32) & 0xFFFF0000).tofile(self.folder / "features.f32")
        labels.tofile(self.folder / "labels.u32")

    def bench(self, name, steps, precision, save, resume=None):
        """Runs `bench head`; returns the losses by step and its `Finished`."""
        options = ["--classes", self.classes, "--dim", self.dim, "--batch-size", self.batch_size, "--steps", steps]
        options += ["--precision", precision, "--seed", 3, "--log-every", 1, "--save", self.folder / save]
        options += ["--features", self.folder / "features.f32", "--labels", self.folder / "labels.u32"]
        for key, value in self.sgd.items():
            options += [f"--{key.replace('_', '-')}", value]
        if resume:
            options += ["--resume", self.folder / resume]
        answer, done = self.kit.bench(f"{self.name}-{name}", "head", *options)
        losses = dict(map(tuple, answer["losses"]))
        if len(losses) != steps:
            raise Failed(f"`{self.name}-{name}` reported {len(losses)} losses of {steps} steps")
        return losses, done


def moved(folder, start):
    """Returns the change of the weights since the start, as one vector."""
    trained, first = load_file(folder / "head.safetensors"), load_file(start / "head.safetensors")
    return np.concatenate([(trained[name] - first[name]).ravel() for name in ("classifier.weight", "classifier.bias")])


def moved_torch(path, start):
    """Returns the change of PyTorch's weights since the start."""
    trained, first = np.load(path), load_file(start / "head.safetensors")
    return np.concatenate([(trained[name] - first[f"classifier.{name}"]).ravel() for name in ("weight", "bias")])


def worst(ours_by_step, theirs):
    """Returns the largest relative difference between two loss curves."""
    pairs = zip((ours_by_step[step] for step in sorted(ours_by_step)), theirs, strict=True)
    gaps = [abs(ours - their) / abs(their) for ours, their in pairs]
    return max(gaps) if np.isfinite(gaps).all() else float("inf")


def head(kit):
    """Compares 50 steps with PyTorch, from the same weights on the same data.

    Tolerances: In f32 on the CPU only the order of sums differs, so 1e-4. A GPU may multiply in TF32, which changes the loss
    by 2e-4 and the weights by 4e-5 (emulated at these sizes), so 1e-3. Rounding logits and gradients to bf16 changes the loss
    by 4e-3, relative to losses near the end that are a hundredth of the first, and the weights by 1.3e-3 (emulated). The two
    sides round at different places, so 2e-2 and 1e-2. Weights are compared by their change, because the start is the same.
    """
    steps, data = 50, Head(kit, "head")
    data.bench("start", 0, "f32", "start")
    start = data.folder / "start"
    job = dict(job="head", folder=data.folder, start=start, steps=steps, batch_size=data.batch_size, **data.sgd)
    theirs, _ = kit.torch("head-torch", "reference.py", job)
    f32 = kit.pick(1e-3, 1e-4)
    for precision, loss_bound, weight_bound in (("f32", f32, f32), ("bf16", 2e-2, 1e-2)):
        losses, done = data.bench(precision, steps, precision, precision, resume="start")
        gap = worst(losses, theirs[precision])
        against = "PyTorch f32" if precision == "f32" else "PyTorch autocast bf16"
        kit.check(
            f"{precision}: loss of each of {steps} steps against {against}",
            gap <= loss_bound,
            f"{gap:.1e}",
            f"<= {loss_bound:.0e}",
            done.peak_bytes,
            {"losses": losses, "torch_losses": theirs[precision]},
        )
        gap = relative(moved(data.folder / precision, start), moved_torch(data.folder / f"torch-{precision}.npz", start))
        kit.check(
            f"{precision}: change of the weights after {steps} steps",
            gap <= weight_bound,
            f"{gap:.1e}",
            f"<= {weight_bound:.0e}",
        )
        fall = losses[max(losses)] / losses[min(losses)]
        kit.check(f"{precision}: the loss falls", fall < 0.9, f"to {fall:.2f} of the first", "< 0.90")


def resume(kit):
    """Saves a head after 25 steps, loads and saves it again, and continues training."""
    data = Head(kit, "resume")
    whole, _ = data.bench("whole", 75, "bf16", "whole")
    data.bench("saved", 25, "bf16", "saved")
    data.bench("again", 0, "bf16", "again", resume="saved")
    saved, again = data.folder / "saved", data.folder / "again"
    differ = [name for name in STATE_FILES if not filecmp.cmp(saved / name, again / name, shallow=False)]
    momentum = np.abs(load_file(saved / "optimizer.safetensors")["classifier.weight.momentum"]).max()
    step = json.loads((saved / "state.json").read_text())["progress"]["step"]
    kit.check(
        "loaded on the device and saved again",
        not differ and momentum > 0 and step == 25,
        f"differing files: {', '.join(differ) or 'none'}; step {step}, largest momentum {momentum:.1e}",
        "the same bytes",
    )
    on, _ = data.bench("on", 50, "bf16", "on", resume="saved")
    gap = worst(on, [whole[step] for step in sorted(whole)[25:]])
    kit.check("losses of steps 26 to 75 after resuming, against an uninterrupted run", gap <= 0.01, f"{gap:.1e}", "<= 1e-02")
