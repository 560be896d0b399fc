#!/usr/bin/python3
"""Stands for NVIDIA's container toolkit on a machine without a card; for docker/test.sh.

The engine runs it as `nvidia-container-runtime-hook` before it starts a container that asks for GPUs. It writes what the container
asks for to EMULATED_NOTES. If the container sets EMUCUDA_SM, it also puts EMULATED_DRIVER into it, as the real one does with the
machine's driver.
"""

import json
import os
import pathlib
import shutil
import sys

bundle = pathlib.Path(json.load(sys.stdin)["bundle"])
config = json.loads((bundle / "config.json").read_text())
environment = config["process"]["env"]
pathlib.Path(os.environ["EMULATED_NOTES"]).write_text("\n".join(environment))
if any(variable.startswith("EMUCUDA_SM=") for variable in environment):
    libraries = bundle / config["root"]["path"] / "usr/lib/x86_64-linux-gnu"
    shutil.copyfile(os.environ["EMULATED_DRIVER"], libraries / "libcuda.so.1")
