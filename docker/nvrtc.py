"""Compiles a kernel with the NVRTC of a CUDA folder, without a card: nvrtc.py CUDA_FOLDER ARCHITECTURE

The kernel includes the headers that the program's generated kernels include. Exit code 1 if it does not compile.
"""

import ctypes
import sys

HEADERS = ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "mma.h", "cuda/barrier", "cooperative_groups.h"]
SOURCE = "".join(f"#include <{header}>\n" for header in HEADERS) + (
    'extern "C" __global__ void probe(__nv_bfloat16* out) { out[threadIdx.x] = __float2bfloat16(1.0f); }'
)


def main():
    root, architecture = sys.argv[1:]
    nvrtc = ctypes.CDLL(f"{root}/lib64/libnvrtc.so")
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), SOURCE.encode(), b"probe.cu", 0, None, None)
    options = [f"--gpu-architecture={architecture}", f"--include-path={root}/include", f"--include-path={root}/include/cccl"]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    code = nvrtc.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    if code:
        sys.exit(f"NVRTC {major.value}.{minor.value} does not compile for {architecture}: {log.value.decode()[:500]}")
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    print(f"NVRTC {major.value}.{minor.value}, {architecture}: {size.value} bytes")


main()
