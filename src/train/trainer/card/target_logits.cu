// The logits of target classes, in f32. A warp takes a pair of row and class; a launch covers a part of the classes.

struct Info {
    u32 count;   // pairs
    u32 first;   // class of the part
    u32 classes; // of the part
    u32 dim;
};

extern "C" __global__ void __launch_bounds__(256)
target_logits(const u32* packed, const bf16* features, const bf16* weight, const float* bias, float* logits,
              const __grid_constant__ Info info) {
    const Targets targets(packed, info.count);
    const u32 lane = threadIdx.x % 32, at = blockIdx.x * 8 + threadIdx.x / 32;
    if (at >= info.count) return;
    const u32 within = targets.classes[at] - info.first;
    // A class before the part wraps around.
    if (within >= info.classes) return;
    const bf16 *left = features + (u64)targets.rows[at] * info.dim, *right = weight + (u64)within * info.dim;
    float sum = 0.0f;
    for (u32 chunk = 8 * lane; chunk < info.dim; chunk += 256) {
        float one[8], other[8];
        unpack(*reinterpret_cast<const uint4*>(left + chunk), one);
        unpack(*reinterpret_cast<const uint4*>(right + chunk), other);
#pragma unroll
        for (int part = 0; part < 8; part++) sum = fmaf(one[part], other[part], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) logits[at] = sum + bias[within];
}
