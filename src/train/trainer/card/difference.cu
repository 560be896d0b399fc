// End of weight · featuresᵀ: softmax less the share of label smoothing, as bf16. The shares of target classes are missing yet.

struct Info {
    u32 rows;    // classes of the part
    u32 columns; // rows of the batch, padded
    u32 depth;
    u32 samples;   // rows of the batch
    float uniform; // ε / classes
};

#define END_PARAMETERS const float *bias, const float *lse, bf16 *out
#define END_ARGUMENTS bias, lse, out

// Stores exp(logit - lse) - uniform for COLUMNS columns of 16 rows; zeros in padding. The tile starts at `row` and `column` of the
// difference.
template <int COLUMNS, int PITCH>
__device__ __forceinline__ void end_tile(const float* sums, u32 row, u32 column, END_PARAMETERS, const Info& info) {
    column += lane_column<COLUMNS>();
    if (column >= info.columns) return;
    const float4 less = *reinterpret_cast<const float4*>(lse + column);
    float uniform[4];
#pragma unroll
    for (int at = 0; at < 4; at++) uniform[at] = column + at < info.samples ? info.uniform : 0.0f;
    const auto read = [&](u32 at) { return bias[at]; };
    const auto write = [&](u32 at, float4 value, float shift) {
        value.x = exp2_approx((value.x + shift - less.x) * LOG2_E) - uniform[0];
        value.y = exp2_approx((value.y + shift - less.y) * LOG2_E) - uniform[1];
        value.z = exp2_approx((value.z + shift - less.z) * LOG2_E) - uniform[2];
        value.w = exp2_approx((value.w + shift - less.w) * LOG2_E) - uniform[3];
        *reinterpret_cast<uint2*>(out + (u64)at * info.columns + column) = make_uint2(pack(value.x, value.y), pack(value.z, value.w));
    };
    end_rows<COLUMNS, PITCH>(sums, row, info.rows, read, write);
}
