"""Compares results of two devices; ends with exit code 1 if they differ by more than a limit, or not at all where they must.

compare.py features ONE OTHER LIMIT     raw little-endian f32
compare.py tensors ONE OTHER LIMIT      f32 tensors of two safetensors files
compare.py losses ONE OTHER LIMIT       `losses` of two JSON reports of `bench head`
compare.py differ ONE OTHER             raw files that must not be equal
compare.py runs ONE OTHER LIMIT         folders of runs with `submission.csv` and `score.json`: NDCG@5 may differ by LIMIT

Of numbers it prints |one - other| / |other| in the Euclidean norm; NaN and different lengths exceed every limit.
"""

import array
import json
import math
import struct
import sys
from pathlib import Path


def features(path):
    """Returns the values of a file of f32."""
    return array.array("f", Path(path).read_bytes())


def tensors(path):
    """Returns the values of all f32 tensors, by name."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    head = json.loads(data[8 : 8 + length])
    values = array.array("f")
    for name in sorted(head):
        if head[name].get("dtype") == "F32":
            begin, end = head[name]["data_offsets"]
            values.frombytes(data[8 + length + begin : 8 + length + end])
    return values


def losses(path):
    """Returns the losses of a report."""
    return [loss for _, loss in json.loads(Path(path).read_text())["losses"]]


def distance(one, other):
    """Returns the relative distance; infinite for NaN, other lengths and no values."""
    if len(one) != len(other) or len(other) == 0:
        return math.inf
    norm = math.sqrt(sum(value * value for value in other))
    found = math.sqrt(sum((mine - value) ** 2 for mine, value in zip(one, other))) / norm
    return math.inf if math.isnan(found) else found


def runs(one, other, limit):
    """Compares two runs by their scores."""
    scores = [json.loads((Path(path) / "score.json").read_text())["ndcg5"] for path in (one, other)]
    rows = [(Path(path) / "submission.csv").read_text().splitlines() for path in (one, other)]
    equal = sum(mine == theirs for mine, theirs in zip(*rows))
    print(f"NDCG@5 {scores[0]:.4f}, and {scores[1]:.4f} on the CPU; {equal} of {len(rows[1])} rows are equal")
    apart = abs(scores[0] - scores[1]) > limit or len(rows[0]) != len(rows[1])
    sys.exit(f"`{one}` is too far from `{other}`" if apart else 0)


def main():
    kind, one, other = sys.argv[1:4]
    if kind == "differ":
        equal = Path(one).read_bytes() == Path(other).read_bytes()
        sys.exit(f"`{one}` equals `{other}`" if equal else 0)
    if kind == "runs":
        runs(one, other, float(sys.argv[4]))
    read = {"features": features, "tensors": tensors, "losses": losses}[kind]
    found, limit = distance(read(one), read(other)), float(sys.argv[4])
    print(f"{kind}: {found:.2e} from the CPU (at most {limit:g})")
    sys.exit(f"{kind} of `{one}` are too far from `{other}`" if found > limit else 0)


main()
