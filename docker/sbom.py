#!/usr/bin/env python3
"""Writes a CycloneDX 1.5 bill of materials on standard output.

    docker/sbom.py program          the crates that the program is linked from (needs cargo and Cargo.lock)
    docker/sbom.py wheels FILE      the packages that a pip requirements file pins

Build scripts, procedural macros and test dependencies are left out: none of their code is in the program.
Needs Python 3.11 or later, and nothing else.
"""

import json
import pathlib
import re
import subprocess
import sys
import tomllib
import uuid
from urllib.parse import quote

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = "x86_64-unknown-linux-gnu"


def component(kind, name, version, purl, licence=None, sha256=None):
    """Returns a component; `licence` is an SPDX expression."""
    entry = {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if licence:
        # Older crates separate alternatives by a slash.
        entry["licenses"] = [{"expression": re.sub(r"\s*/\s*", " OR ", licence)}]
    if sha256:
        entry["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    return entry


def program():
    """Describes the program by cargo's dependency tree and the checksums of Cargo.lock."""
    command = ["cargo", "tree", "--locked", "--edges", "normal,no-proc-macro", "--target", TARGET]
    # Each line: depth, name, version, perhaps a path, licence. The dependencies of a package follow its first line.
    command += ["--prefix", "depth", "--format", " {p} | {l} |"]
    tree = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(package["name"], package["version"]): package.get("checksum") for package in lock["package"]}
    components, edges, ancestors = {}, {}, []
    for line in tree.splitlines():
        depth, name, version, licence = re.match(r"(\d+) (\S+) v(\S+).*? \| (.*?) \|", line).groups()
        purl = f"pkg:cargo/{name}@{quote(version)}"
        kind = "library" if ancestors else "application"
        components.setdefault(purl, component(kind, name, version, purl, licence, checksums[name, version]))
        edges.setdefault(purl, set())
        ancestors[int(depth):] = [purl]
        if len(ancestors) > 1:
            edges[ancestors[-2]].add(purl)
    dependencies = [{"ref": purl, "dependsOn": sorted(edges[purl])} for purl in sorted(edges)]
    subject = components.pop(ancestors[0])
    return subject, [components[purl] for purl in sorted(components)], dependencies


def wheels(path):
    """Describes the packages of a requirements file; the first hash of each is that of the x86-64 wheel."""
    text = pathlib.Path(path).read_text().replace("\\\n", " ")
    pins = re.findall(r"^([\w.-]+)==(\S+)\s+--hash=sha256:([0-9a-f]{64})", text, re.MULTILINE)
    parts = [component("library", name, version, f"pkg:pypi/{name}@{version}", sha256=sha256) for name, version, sha256 in pins]
    toolkit = pathlib.Path(path).stem
    return {"type": "framework", "bom-ref": toolkit, "name": toolkit}, parts, []


def main():
    match sys.argv[1:]:
        case ["program"]:
            subject, components, dependencies = program()
        case ["wheels", path]:
            subject, components, dependencies = wheels(path)
        case _:
            sys.exit(__doc__)
    content = json.dumps([subject, components], sort_keys=True)
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        # Equal contents have equal serial numbers, so that a repeated build makes the same layer.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}",
        "version": 1,
        "metadata": {"component": subject},
        "components": components,
        "dependencies": dependencies,
    }
    json.dump(document, sys.stdout, indent=1)
    print()


main()
