"""Finds the CUDA toolkit for the binary's kernels and checks it against the driver.

toolkit.py find DIR      prints CUDA_PATH and the library path, or nothing; creates directories of links in DIR
toolkit.py probe FILE    compiles the headers in CUDA_PATH with NVRTC and writes the result to FILE as JSON
"""

import ctypes
import importlib.util
import json
import os
import sys
from pathlib import Path

SYSTEM = Path("/usr/local/cuda")
# Headers of generated kernels, and a kernel that includes them.
HEADERS = ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "mma.h", "cooperative_groups.h", "cuda/barrier", "cuda/ptx"]
PROBE = "".join(f"#include <{header}>\n" for header in HEADERS) + (
    'extern "C" __global__ void probe(float* out, __nv_bfloat16 value) { out[0] = __bfloat162float(value); }\n'
)


def package_folder(name):
    """Returns the directories of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    return [Path(folder) for folder in spec.submodule_search_locations] if spec else []


def include_folders():
    """Returns the header directories of the packages installed with torch, the most complete first.

    The packages of CUDA 13 share one directory, those of CUDA 12 have one each. torch for CUDA 13 does not install the `crt/`
    headers; triton, which it installs, has a copy.
    """
    folders = []
    for nvidia in package_folder("nvidia"):
        folders += sorted(nvidia.glob("cu[0-9]*/include"), reverse=True)
        folders += [nvidia / part / "include" for part in ("cuda_runtime", "cuda_nvrtc", "cuda_nvcc", "cuda_cccl")]
    folders += [triton / "backends/nvidia/include" for triton in package_folder("triton")]
    return [folder for folder in folders if folder.is_dir()]


def nvrtc_in(folder):
    """Returns the NVRTC library in a directory, or None."""
    found = sorted(path for path in folder.glob("libnvrtc.so*") if path.is_file())
    return found[0] if found else None


def nvrtc_beside_torch():
    """Returns the NVRTC library of the packages installed with torch, or None."""
    for nvidia in package_folder("nvidia"):
        for folder in [*sorted(nvidia.glob("cu[0-9]*/lib"), reverse=True), nvidia / "cuda_nvrtc/lib"]:
            if library := nvrtc_in(folder):
                return library
    return None


def merge(folders, into):
    """Links all headers into one directory; of equal names the first directory wins."""
    into.mkdir(parents=True)
    for folder in folders:
        for entry in sorted(folder.iterdir()):
            link = into / entry.name
            if not link.is_symlink():
                link.symlink_to(entry)


def find(folder):
    """Returns CUDA_PATH and the library path for the binary, or None."""
    root = Path(os.environ.get("CUDA_PATH") or SYSTEM)
    library = next(filter(None, map(nvrtc_in, (root / "lib64", root / "lib"))), None)
    if not (root / "include/cuda_fp16.h").exists():
        folders = include_folders()
        if not any((own / "cuda_fp16.h").exists() for own in folders):
            return None
        root = folder
        merge(folders, root / "include")
        library = nvrtc_beside_torch()
    library = library or nvrtc_beside_torch()
    if library is None:
        return root, ""
    # Loaders try the name without a version. Libraries that NVRTC loads are in the directory of the original.
    link = folder / "lib" / "libnvrtc.so"
    link.parent.mkdir(parents=True)
    link.symlink_to(library)
    return root, f"{link.parent}:{library.parent}"


def driver_version():
    """Returns the newest CUDA version that the driver supports, or None without a driver."""
    try:
        driver, version = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:
        return None
    driver.cuDriverGetVersion(ctypes.byref(version))
    return [version.value // 1000, version.value % 1000 // 10]


def compile_probe(nvrtc, root):
    """Compiles one kernel with all headers; returns the messages of NVRTC, empty on success."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    options = [b"--gpu-architecture=sm_90a"]
    options += [f"--include-path={root / part}".encode() for part in ("include", "include/cccl") if (root / part).exists()]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), PROBE.encode(), b"probe.cu", 0, None, None)
    if nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)) == 0:
        return ""
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    return log.value.decode(errors="replace").strip() or "no message"


def probe():
    """Returns the versions of NVRTC and driver and the messages of the compiler."""
    nvrtc, major, minor = ctypes.CDLL("libnvrtc.so"), ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    root = Path(os.environ["CUDA_PATH"])
    return {
        "nvrtc": [major.value, minor.value],
        "driver": driver_version(),
        "cuda_path": str(root),
        "message": compile_probe(nvrtc, root),
    }


if __name__ == "__main__":
    if sys.argv[1] == "probe":
        Path(sys.argv[2]).write_text(json.dumps(probe()))
    elif toolkit := find(Path(sys.argv[2])):
        print(*toolkit, sep="\n")
