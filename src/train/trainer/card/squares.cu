// Partial sums of squares, one a warp, always by the same warps.

struct Info {
    u32 count_low, count_high;
};

extern "C" __global__ void __launch_bounds__(256)
squares(const float* values, float* sums, const __grid_constant__ Info info) {
    const u64 count = (u64)info.count_high << 32 | info.count_low;
    float sum = 0.0f;
    for (u64 at = (u64)blockIdx.x * 256 + threadIdx.x; at < count; at += (u64)gridDim.x * 256) sum = fmaf(values[at], values[at], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[blockIdx.x * 8 + threadIdx.x / 32] = sum;
}
