// The norm from partial sums of squares, by one warp.

struct Info {
    u32 count;
};

extern "C" __global__ void __launch_bounds__(32)
gradient_norm(const float* sums, float* out, const __grid_constant__ Info info) {
    float sum = 0.0f;
    for (u32 at = threadIdx.x; at < info.count; at += 32) sum += sums[at];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) *out = sqrtf(sum);
}
