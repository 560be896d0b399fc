"""Checks saved images layer by layer: layers.py FOLDER SECRET NAME=MEGABYTES…

FOLDER is an unpacked `docker save`. No layer and no line of history may hold SECRET, or the name of a variable for one, even if
a later layer deletes it. Each image may take MEGABYTES at most, its layers compressed as a registry sends them (by gzip's fastest
level, which is an upper bound). Exit code 1 if one of that does not hold.
"""

import json
import pathlib
import re
import sys
import zlib

NAMES = re.compile(r"secret_access|token=|password|BEGIN ", re.IGNORECASE)


def examine(layer, secret):
    """Returns the compressed size of a layer and whether it holds the secret."""
    compressor, size, found, tail = zlib.compressobj(1), 0, False, b""
    with layer.open("rb") as file:
        while block := file.read(1 << 20):
            found = found or secret in tail + block
            tail = block[-len(secret):]
            size += len(compressor.compress(block))
    return size + len(compressor.flush()), found


def main():
    folder, secret = pathlib.Path(sys.argv[1]), sys.argv[2].encode()
    limits = {name: int(limit) for name, limit in (argument.split("=") for argument in sys.argv[3:])}
    problems, sizes = [], {}
    for image in json.loads((folder / "manifest.json").read_text()):
        name = image["RepoTags"][0]
        for entry in json.loads((folder / image["Config"]).read_text())["history"]:
            line = entry.get("created_by", "")
            if NAMES.search(line) or secret.decode() in line:
                problems.append(f"{name}: its history holds a secret: {line}")
        for layer in image["Layers"]:
            if layer not in sizes:
                sizes[layer], found = examine(folder / layer, secret)
                if found:
                    problems.append(f"{name}: the layer {layer} holds a secret of the build context")
        megabytes, limit = sum(sizes[layer] for layer in image["Layers"]) / 1e6, limits.pop(name)
        print(f"{name}: {megabytes:.0f} MB compressed in {len(image['Layers'])} layers, at most {limit}")
        if megabytes > limit:
            problems.append(f"{name}: it is larger than {limit} MB")
    problems += [f"{name}: it is not among the saved images" for name in limits]
    sys.exit("\n".join(problems) or None)


main()
