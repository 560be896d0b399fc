// The gradient of the bias: sums over the rows of `difference`. A warp takes a class. FUSED is as in `gradient.cu`.

struct Info {
    u32 classes; // of the part
    u32 padded;  // rows of the batch
    float scale;
#if FUSED
    Rule rule;
#else
    u32 first;
#endif
};

extern "C" __global__ void __launch_bounds__(256)
#if FUSED
bias_gradient(const bf16* difference, float* bias, float* velocity, const __grid_constant__ Info info) {
#else
bias_gradient(const bf16* difference, float* gradient, const __grid_constant__ Info info) {
#endif
    const u32 lane = threadIdx.x % 32, at = blockIdx.x * 8 + threadIdx.x / 32;
    if (at >= info.classes) return;
    const bf16* from = difference + (u64)at * info.padded;
    float sum = 0.0f;
    for (u32 row = 8 * lane; row < info.padded; row += 256) {
        float values[8];
        unpack(*reinterpret_cast<const uint4*>(from + row), values);
#pragma unroll
        for (int part = 0; part < 8; part++) sum += values[part];
    }
    sum = warp_sum(sum) * info.scale;
    if (lane != 0) return;
#if FUSED
    float value = bias[at], old = velocity[at];
    apply(value, old, sum, info.rule);
    bias[at] = value;
    velocity[at] = old;
#else
    gradient[at] = info.first ? sum : gradient[at] + sum;
#endif
}
