// Transposes features: a thread writes one value of eight rows.

struct Info {
    u32 rows; // a multiple of 8
    u32 dim;
};

extern "C" __global__ void __launch_bounds__(256)
transpose(const bf16* from, bf16* to, const __grid_constant__ Info info) {
    const u32 at = blockIdx.x * 256 + threadIdx.x;
    const u32 column = at % info.dim, row = at / info.dim * 8;
    if (row >= info.rows) return;
    u32 words[4];
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
        const bf16* first = from + (u64)(row + 2 * pair) * info.dim + column;
        words[pair] = (u32)first[0] | (u32)first[info.dim] << 16;
    }
    *reinterpret_cast<uint4*>(to + (u64)column * info.rows + row) = make_uint4(words[0], words[1], words[2], words[3]);
}
