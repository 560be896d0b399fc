// Updates weight and bias with an accumulated gradient, which is clipped if `clip` is not 0.

struct Info {
    Rule rule;
    float clip;
    u32 copied_low, copied_high; // values of the weight, which have a bf16 copy
    u32 count_low, count_high;   // values of weight and bias
};

extern "C" __global__ void __launch_bounds__(256)
update(float* values, float* velocity, bf16* copy, const float* gradient, const float* norm, const __grid_constant__ Info info) {
    const u64 count = (u64)info.count_high << 32 | info.count_low, copied = (u64)info.copied_high << 32 | info.copied_low;
    float factor = info.clip > 0.0f ? info.clip / (*norm + 1e-6f) : 1.0f;
    // A norm that is not a number makes all values NaN, as in PyTorch; `fminf` would pass the gradient on as it is.
    if (factor > 1.0f) factor = 1.0f;
    for (u64 at = (u64)blockIdx.x * 256 + threadIdx.x; at < count; at += (u64)gridDim.x * 256) {
        float value = values[at], old = velocity[at];
        apply(value, old, gradient[at] * factor, info.rule);
        values[at] = value;
        velocity[at] = old;
        if (at < copied) copy[at] = (bf16)pack(value, 0.0f);
    }
}
