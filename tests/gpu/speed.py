"""Measures first features, forward pass, head and ranking, and compares them with PyTorch on the same device."""

from common import Failed
from parity import vit
from profiled import families

CLASSES, IDS, DIM = 92_366, 44_762, 768
FORWARD_GOAL, HEAD_GOAL, FIRST_GOAL_S = 0.40, 500_000, 60


def bench_checkpoint(kit):
    """Creates the checkpoint of all measurements once; returns its directory."""
    folder = kit.out / "speed/model"
    if not folder.exists():
        kit.torch("speed-checkpoint", "rival.py", dict(job="save", folder=folder, config=vit(kit)))
    return folder


def forward_arguments(kit, batch_size, rows, passes):
    """Returns the arguments of `bench forward` in the precision of the comparison."""
    precision = kit.pick("bf16", "f32")
    return [
        "--checkpoint",
        bench_checkpoint(kit),
        "--precision",
        precision,
        "--batch-size",
        batch_size,
        "--rows",
        rows,
        "--passes",
        passes,
    ]


def start(kit):
    """Measures the time to the first features with cold and with warm caches; later parts find them warm."""
    if any(kit.scratch.iterdir()):
        raise Failed("the scratch directory is not empty; this part must run first")
    batch_size = kit.pick(256, 4)
    arguments = forward_arguments(kit, batch_size, batch_size, 1)
    cold, done = kit.bench("start-cold", "forward", *arguments, limit_s=150)
    seconds = cold["first_features_s"]
    kit.goal(
        "first features, cold caches",
        seconds < FIRST_GOAL_S,
        f"{seconds:.1f} s",
        f"< {FIRST_GOAL_S} s",
        done.peak_bytes,
        cold,
    )
    warm, done = kit.bench("start-warm", "forward", *arguments, limit_s=150)
    kit.measured("first features, warm caches", f"{warm['first_features_s']:.1f} s", done.peak_bytes, warm)


def forward(kit):
    """Measures images per second by batch size, and the share of the device's dense rate."""
    rows, passes = kit.pick((2048, 3), (8, 2))
    best = {}
    for batch_size in kit.pick((32, 64, 128, 256, 512), (2, 4)):
        try:
            answer, done = kit.bench(
                f"forward-{batch_size}", "forward", *forward_arguments(kit, batch_size, rows, passes), limit_s=60
            )
        except Failed as error:
            kit.check(f"batch {batch_size}", False, str(error), "an answer")
            continue
        kit.measured(f"batch {batch_size}", f"{answer['images_per_s']:,.0f} images/s", done.peak_bytes, answer)
        best = max(best, answer, key=lambda one: one.get("images_per_s", 0))
    if not best:
        raise Failed("no batch size gave an answer")
    kit.images_per_s = best["images_per_s"]
    kit.measured("attention", best["attention"])
    against_dense(kit, best)
    theirs, own = max(torch_rates(kit, rows, passes), default=0), best["images_per_s"]
    kit.goal(
        "best batch size against PyTorch's best",
        own >= theirs > 0,
        f"{own / theirs:.2f} times" if theirs else "no figure of PyTorch",
        ">= 1 times",
    )


def against_dense(kit, best):
    """Adds the share of the dense rate."""
    dense, _ = kit.torch("dense", "rival.py", dict(job="dense", side=kit.pick(8192, 512)))
    share = best["images_per_s"] * best["flop_per_image"] / 1e12 / dense["tflop_per_s"]
    kit.measured("dense matrix product, PyTorch", f"{dense['tflop_per_s']:,.3g} TFLOP/s", data=dense)
    kit.goal(
        "share of the dense rate at the best batch size",
        share >= FORWARD_GOAL,
        f"{share:.0%} ({best['flop_per_image'] / 1e9:.3g} GFLOP an image, batch {best['batch_size']})",
        f">= {FORWARD_GOAL:.0%}",
    )


def torch_rates(kit, rows, passes):
    """Adds PyTorch's rows and returns its rates. Each compilation is a separate job, because it may exceed its limit."""
    rates, job = (
        [],
        dict(job="forward", folder=bench_checkpoint(kit), size_px=vit(kit)["size_px"], rows=rows, passes=passes),
    )
    for compiled, batch_sizes in kit.pick(
        ((False, (32, 64, 128, 256, 512)), (True, (256,)), (True, (128,))), ((False, (2, 4)),)
    ):
        kind = "compiled" if compiled else "eager"
        name = f"forward-torch-{kind}-{batch_sizes[0]}"
        try:
            answer, done = kit.torch(name, "rival.py", {**job, "batch_sizes": batch_sizes, "compiled": compiled}, limit_s=75)
        except Failed as error:
            kit.add(f"PyTorch {kind}", str(error), "", "not measured")
            continue
        for batch_size, rate in answer.items():
            kit.measured(
                f"PyTorch {kind}, batch {batch_size}", f"{rate:,.0f} images/s", done.peak_bytes, {"images_per_s": rate}
            )
            rates.append(rate)
    return rates


def head(kit):
    """Measures the training of the head at the size of the published task."""
    classes, dim = kit.pick((CLASSES, DIM), (2000, 64))
    rates = []
    for batch_size, steps in kit.pick(((128, 300), (1024, 100)), ((16, 20),)):
        sizes = dict(classes=classes, dim=dim, batch_size=batch_size, steps=steps)
        options = [part for key, value in sizes.items() for part in (f"--{key.replace('_', '-')}", value)]
        answer, done = kit.bench(
            f"head-{batch_size}",
            "head",
            *options,
            "--precision",
            "bf16",
            "--momentum",
            0.9,
            "--learning-rate",
            0.01,
            limit_s=60,
        )
        rates.append(answer["rows_per_s"])
        kit.measured(f"batch {batch_size}", f"{rates[-1]:,.0f} rows/s", done.peak_bytes, answer)
        theirs, done = kit.torch(f"head-torch-{batch_size}", "rival.py", dict(job="head", **sizes), limit_s=60)
        kit.measured(f"PyTorch, batch {batch_size}", f"{theirs['rows_per_s']:,.0f} rows/s", done.peak_bytes, theirs)
    kit.goal("best batch size", max(rates) >= HEAD_GOAL, f"{max(rates):,.0f} rows/s", f">= {HEAD_GOAL:,} rows/s")


def rank(kit):
    """Measures ranking the top five of all classes for the published test images."""
    classes, dim, rows = kit.pick((CLASSES, DIM, IDS), (500, 64, 200))
    answer, done = kit.bench("rank", "rank", "--classes", classes, "--dim", dim, "--rows", rows, "--top-k", 5, limit_s=60)
    kit.measured(
        f"{rows:,} rows of {classes:,} classes",
        f"{answer['seconds']:.2f} s, {answer['rows_per_s']:,.0f} rows/s",
        done.peak_bytes,
        answer,
    )


def kernels(kit):
    """Measures the time of the forward pass by kernel family; the log stays in OUT."""
    log, batch_size = kit.out / "kernels.log", kit.pick(256, 4)
    env = {"CUBECL_DEBUG_OPTION": "profile-medium", "CUBECL_DEBUG_LOG": str(log)}
    kit.bench("kernels", "forward", *forward_arguments(kit, batch_size, 2 * batch_size, 1), env=env, limit_s=90)
    shares = families(log)
    if not shares:
        kit.add("shares by family", f"`{log.name}` has no kernel times", "", "not measured")
    for family, share in shares.items():
        kit.measured(
            f"{family}", f"{share['share']:.1%} of {share['seconds']:.3f} s, {share['launches']} launches", data=share
        )
