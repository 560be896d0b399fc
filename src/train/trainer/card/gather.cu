// Copies rows by their indices, in chunks of eight values; a missing row becomes zeros. A thread takes a chunk.

struct Info {
    u32 count; // rows to write
    u32 dim;
};

constexpr u32 MISSING = 0xFFFFFFFFu;

extern "C" __global__ void __launch_bounds__(256)
gather(const uint4* from, const u32* indices, uint4* to, const __grid_constant__ Info info) {
    const u32 chunks = info.dim / 8;
    const u64 at = (u64)blockIdx.x * 256 + threadIdx.x;
    if (at >= (u64)info.count * chunks) return;
    const u32 index = indices[at / chunks];
    to[at] = index == MISSING ? make_uint4(0, 0, 0, 0) : from[(u64)index * chunks + at % chunks];
}
