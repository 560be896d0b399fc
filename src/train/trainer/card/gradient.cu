// End of difference · features, the gradient of the weight.
//
// FUSED 1 updates the weight at once, and writes its bf16 copy. FUSED 0 stores the gradient, or adds to it.

struct Info {
    u32 rows;    // classes of the part
    u32 columns; // values of a feature
    u32 depth;
    float scale; // 1 / samples of the step
#if FUSED
    Rule rule;
#else
    u32 first; // whether there is no gradient yet
#endif
};

#if FUSED
#define END_PARAMETERS float *weight, float *velocity, bf16 *rounded
#define END_ARGUMENTS weight, velocity, rounded
#else
#define END_PARAMETERS float *gradient
#define END_ARGUMENTS gradient
#endif

// For `sums` and the place, see `statistics.cu`.
template <int COLUMNS, int PITCH>
__device__ __forceinline__ void end_tile(const float* sums, u32 row, u32 column, END_PARAMETERS, const Info& info) {
    constexpr u32 LANES = COLUMNS / 4; // of a row
    constexpr u32 STEP = 32 / LANES;   // rows at once
    const u32 lane = threadIdx.x % 32, x = lane % LANES * 4;
    column += x;
    if (column >= info.columns) return;
#pragma unroll 4
    for (u32 y = lane / LANES; y < 16; y += STEP) {
        const u32 at = row + y;
        if (at >= info.rows) break;
        float4 value = *reinterpret_cast<const float4*>(sums + y * PITCH + x);
        const u64 to = (u64)at * info.columns + column;
        value.x *= info.scale;
        value.y *= info.scale;
        value.z *= info.scale;
        value.w *= info.scale;
#if FUSED
        float4 w = *reinterpret_cast<const float4*>(weight + to), v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (info.rule.momentum > 0.0f) v = *reinterpret_cast<const float4*>(velocity + to);
        apply(w.x, v.x, value.x, info.rule);
        apply(w.y, v.y, value.y, info.rule);
        apply(w.z, v.z, value.z, info.rule);
        apply(w.w, v.w, value.w, info.rule);
        *reinterpret_cast<float4*>(weight + to) = w;
        if (info.rule.momentum > 0.0f) *reinterpret_cast<float4*>(velocity + to) = v;
        *reinterpret_cast<uint2*>(rounded + to) = make_uint2(pack(w.x, w.y), pack(w.z, w.w));
#else
        if (info.first == 0) {
            const float4 old = *reinterpret_cast<const float4*>(gradient + to);
            value.x += old.x;
            value.y += old.y;
            value.z += old.z;
            value.w += old.w;
        }
        *reinterpret_cast<float4*>(gradient + to) = value;
#endif
    }
}
