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
    u32 first; // 1 if there is no gradient yet
#endif
};

#if FUSED
#define END_PARAMETERS float *weight, float *velocity, bf16 *rounded
#define END_ARGUMENTS weight, velocity, rounded
#else
#define END_PARAMETERS float *gradient
#define END_ARGUMENTS gradient
#endif

#if FUSED
struct Operand {
    float4 weight, velocity;
};
#else
typedef float4 Operand;
#endif

// Applies or stores COLUMNS columns of 16 rows. The tile starts at `row` and `column` of the gradient.
template <int COLUMNS, int PITCH>
__device__ __forceinline__ void end_tile(const float* sums, u32 row, u32 column, END_PARAMETERS, const Info& info) {
    column += lane_column<COLUMNS>();
    if (column >= info.columns) return;
    const auto read = [&](u32 at) {
        const u64 from = (u64)at * info.columns + column;
#if FUSED
        Operand operand = {*reinterpret_cast<const float4*>(weight + from), make_float4(0.0f, 0.0f, 0.0f, 0.0f)};
        if (info.rule.momentum > 0.0f) operand.velocity = *reinterpret_cast<const float4*>(velocity + from);
        return operand;
#else
        return info.first == 0 ? *reinterpret_cast<const float4*>(gradient + from) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#endif
    };
    const auto write = [&](u32 at, float4 value, Operand operand) {
        const u64 to = (u64)at * info.columns + column;
        value.x *= info.scale;
        value.y *= info.scale;
        value.z *= info.scale;
        value.w *= info.scale;
#if FUSED
        float4 &w = operand.weight, &v = operand.velocity;
        apply(w.x, v.x, value.x, info.rule);
        apply(w.y, v.y, value.y, info.rule);
        apply(w.z, v.z, value.z, info.rule);
        apply(w.w, v.w, value.w, info.rule);
        *reinterpret_cast<float4*>(weight + to) = w;
        if (info.rule.momentum > 0.0f) *reinterpret_cast<float4*>(velocity + to) = v;
        *reinterpret_cast<uint2*>(rounded + to) = make_uint2(pack(w.x, w.y), pack(w.z, w.w));
#else
        value.x += operand.x;
        value.y += operand.y;
        value.z += operand.z;
        value.w += operand.w;
        *reinterpret_cast<float4*>(gradient + to) = value;
#endif
    };
    end_rows<COLUMNS, PITCH>(sums, row, info.rows, read, write);
}
