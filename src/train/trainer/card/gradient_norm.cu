// The norm from partial sums of squares, by one block. Each thread always adds the same ones.

struct Info {
    u32 count;
};

extern "C" __global__ void __launch_bounds__(1024)
gradient_norm(const float* sums, float* out, const __grid_constant__ Info info) {
    __shared__ float of_warps[32];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum = 0.0f;
    for (u32 at = threadIdx.x; at < info.count; at += 1024) sum += sums[at];
    sum = warp_sum(sum);
    if (lane == 0) of_warps[warp] = sum;
    __syncthreads();
    if (warp > 0) return;
    sum = warp_sum(of_warps[lane]);
    if (lane == 0) *out = sqrtf(sum);
}
