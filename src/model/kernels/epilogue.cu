// Ends of a product: what happens to a sum before it is stored.
//
// EPILOGUE: 0 adds the bias; 1 adds the bias and applies ACTIVATION; 2 adds bias and residual; 3 adds the row's position and stores
// the row behind the leading tokens of its image; 4 adds the bias and stores ACTIVATION(gate) · value for each pair of columns, gate and
// value; 5 adds the bias and rotates pairs of columns of queries and keys, the first two thirds of a row, by angles of the row's token.
// Heads have WIDTH columns.
// ACTIVATION: 0 GELU, 1 GELU by tanh, 2 ReLU, 3 x·σ(1.702·x), 4 SiLU.

struct Info {
    u32 rows;    // of the left matrix and of the result
    u32 columns; // of the product; a multiple of 8
    u32 depth;   // of the sum; a multiple of 8
    u32 pitch;   // of the result, in values
    u32 patches; // of an image (EPILOGUE 3)
    u32 tokens;  // of an image (EPILOGUE 3 and 5)
};

#if EPILOGUE == 1 || EPILOGUE == 4
__device__ __forceinline__ float sigmoid(float x) {
    return reciprocal_approx(1.0f + exp2_approx(-1.44269504f * x));
}

__device__ __forceinline__ float activate(float x) {
#if ACTIVATION == 0
    // x·Φ(x), with erfc by Abramowitz and Stegun 7.1.26 (error below 1.5e-7): no cancellation for negative x.
    const float z = 0.70710678f * fabsf(x);
    const float t = reciprocal_approx(fmaf(0.3275911f, z, 1.0f));
    float sum = fmaf(1.061405429f, t, -1.453152027f);
    sum = fmaf(sum, t, 1.421413741f);
    sum = fmaf(sum, t, -0.284496736f);
    sum = fmaf(sum, t, 0.254829592f);
    const float tail = 0.5f * sum * t * exp2_approx(-0.72134752f * x * x);
    return x * (x < 0.0f ? tail : 1.0f - tail);
#elif ACTIVATION == 1
    // x·(1 + tanh(u)) / 2 = x·σ(2u).
    return x * sigmoid(1.5957691216f * x * fmaf(0.044715f * x, x, 1.0f));
#elif ACTIVATION == 2
    return fmaxf(x, 0.0f);
#elif ACTIVATION == 3
    return x * sigmoid(1.702f * x);
#else
    return x * sigmoid(x);
#endif
}
#endif

#if EPILOGUE == 5
// `rotation` is [tokens, WIDTH]: cosine and sine for each pair of a head's columns.
#define END_PARAMETERS const float *bias, const float *rotation, bf16 *out
#define END_ARGUMENTS bias, rotation, out
#else
#define END_PARAMETERS const float *bias, const bf16 *residual, bf16 *out
#define END_ARGUMENTS bias, residual, out
#endif

// Stores COLUMNS columns of 16 rows. The tile starts at `row` and `column` of the result.
template <int COLUMNS, int PITCH>
__device__ __forceinline__ void end_tile(const float* sums, u32 row, u32 column, END_PARAMETERS, const Info& info) {
    column += lane_column<COLUMNS>();
    if (column >= info.columns) return;
#if EPILOGUE != 3
    const float4 shift = *reinterpret_cast<const float4*>(bias + column);
#endif
#if EPILOGUE == 2
    typedef uint2 Operand;
    const auto read = [&](u32 at) { return *reinterpret_cast<const uint2*>(residual + (u64)at * info.pitch + column); };
#elif EPILOGUE == 3
    typedef float4 Operand;
    const auto read = [&](u32 at) {
        return *reinterpret_cast<const float4*>(bias + (u64)(at % info.patches) * info.columns + column);
    };
#elif EPILOGUE == 5
    typedef float4 Operand; // cosine and sine for two pairs
    const bool rotates = column < info.columns / 3 * 2;
    rotation += column % WIDTH;
    const auto read = [&](u32 at) {
        return rotates ? *reinterpret_cast<const float4*>(rotation + at % info.tokens * WIDTH) : make_float4(1.0f, 0.0f, 1.0f, 0.0f);
    };
#else
    typedef int Operand; // nothing
    const auto read = [](u32) { return 0; };
#endif
    const auto write = [&](u32 at, float4 value, Operand operand) {
        u64 to = (u64)at * info.pitch + (EPILOGUE == 4 ? column / 2 : column);
#if EPILOGUE == 3
        const float4 shift = operand;
        const u32 image = at / info.patches, patch = at - image * info.patches;
        to = (u64)(image * info.tokens + info.tokens - info.patches + patch) * info.pitch + column;
#endif
        value.x += shift.x;
        value.y += shift.y;
        value.z += shift.z;
        value.w += shift.w;
#if EPILOGUE == 1
        value.x = activate(value.x);
        value.y = activate(value.y);
        value.z = activate(value.z);
        value.w = activate(value.w);
#elif EPILOGUE == 2
        value.x += low_half(operand.x);
        value.y += high_half(operand.x);
        value.z += low_half(operand.y);
        value.w += high_half(operand.y);
#elif EPILOGUE == 5
        value = make_float4(value.x * operand.x - value.y * operand.y, value.y * operand.x + value.x * operand.y,
                            value.z * operand.z - value.w * operand.w, value.w * operand.z + value.z * operand.w);
#endif
#if EPILOGUE == 4
        *reinterpret_cast<u32*>(out + to) = pack(activate(value.x) * value.y, activate(value.z) * value.w);
#else
        *reinterpret_cast<uint2*>(out + to) = make_uint2(pack(value.x, value.y), pack(value.z, value.w));
#endif
    };
    end_rows<COLUMNS, PITCH>(sums, row, info.rows, read, write);
}
