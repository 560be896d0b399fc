"""Reads the times of kernels from a log of CubeCL (CUBECL_DEBUG_OPTION=profile-medium)."""

import re
from collections import defaultdict

# One line for each launch: `| 12.3µs     | name`. Lines of the summary tables start with the name.
LAUNCH = re.compile(r"^\| ([\d.]+)(ns|µs|ms|s) +\| (.+)$")
SECONDS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
# The first match counts, so a fused product belongs to GEMM.
FAMILIES = [
    ("attention", re.compile("attention|flash", re.I)),
    ("GEMM", re.compile("matmul|gemm|gemv|conv|product", re.I)),
    ("normalisation and reduction", re.compile("reduce|norm|softmax|argtopk|sum|mean|pool", re.I)),
    ("copies", re.compile("contiguous|copy|cast|slice|transpose|permute|into|patches", re.I)),
    ("elementwise", re.compile("elem|unary|binary|fuse|scalar|mask|select|gather", re.I)),
]


def family(kernel):
    """Returns the family of a kernel by its name."""
    return next((name for name, pattern in FAMILIES if pattern.search(kernel)), "other")


def families(log):
    """Returns seconds, share, launches and the three longest kernels by family, longest first; empty without a log."""
    kernels = defaultdict(lambda: [0.0, 0])
    if log.exists():
        for line in log.read_text(errors="replace").splitlines():
            if match := LAUNCH.match(line):
                kernel = kernels[match[3].strip()]
                kernel[0] += float(match[1]) * SECONDS[match[2]]
                kernel[1] += 1
    total = sum(seconds for seconds, _ in kernels.values())
    sums = defaultdict(lambda: {"seconds": 0.0, "share": 0.0, "launches": 0, "longest": []})
    for name, (seconds, launches) in sorted(kernels.items(), key=lambda item: -item[1][0]):
        own = sums[family(name)]
        own["seconds"] += seconds
        own["share"] += seconds / total
        own["launches"] += launches
        own["longest"] = [*own["longest"], [name[:120], seconds, launches]][:3]
    return dict(sorted(sums.items(), key=lambda item: -item[1]["seconds"]))
