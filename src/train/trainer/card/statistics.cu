// End of features · weightᵀ: the statistics of the logits of a strip of classes, for each row. Logits are not stored.

struct Info {
    u32 rows;    // of the batch
    u32 columns; // classes of the part
    u32 depth;
    u32 strips; // of the whole head
    u32 first;  // strip of the part
};

#define END_PARAMETERS const float *bias, float4 *statistics
#define END_ARGUMENTS bias, statistics

// Writes maximum, Σ exp(logit - maximum) and Σ logit of COLUMNS columns of 16 rows. `sums`, f32 in shared memory of this warp alone, has
// `PITCH` values a row. The tile starts at `row` and `column` of the logits. WHOLE: no class is missing.
//
// Two lanes share a row and take chunks of four columns in turn, so that few values pass between lanes. PITCH is 8 more than a multiple of
// 32: eight lanes read from all banks. A lane reads its logits back from where its sums were.
template <int COLUMNS, int PITCH, bool WHOLE>
__device__ __forceinline__ void write_statistics(float* sums, u32 row, u32 column, END_PARAMETERS, const Info& info) {
    const u32 lane = threadIdx.x % 32, x = lane % 2 * 4;
    float4* own = reinterpret_cast<float4*>(sums + lane / 2 * PITCH + x);
    float most = NEGATIVE_INFINITY, sum = 0.0f, total = 0.0f;
#pragma unroll 4
    for (u32 chunk = 0; chunk < COLUMNS / 8; chunk++) {
        const u32 at = column + 8 * chunk + x;
        const float4 four = own[2 * chunk];
        float4 shift = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (WHOLE) {
            shift = *reinterpret_cast<const float4*>(bias + at);
        } else {
            if (at < info.columns) shift.x = bias[at];
            if (at + 1 < info.columns) shift.y = bias[at + 1];
            if (at + 2 < info.columns) shift.z = bias[at + 2];
            if (at + 3 < info.columns) shift.w = bias[at + 3];
        }
        float logits[4] = {four.x + shift.x, four.y + shift.y, four.z + shift.z, four.w + shift.w};
#pragma unroll
        for (u32 part = 0; part < 4; part++) {
            const bool present = WHOLE || at + part < info.columns;
            if (present) total += logits[part];
            if (!present) logits[part] = NEGATIVE_INFINITY;
            most = fmaxf(most, logits[part]);
        }
        own[2 * chunk] = make_float4(logits[0], logits[1], logits[2], logits[3]);
    }
    most = group_max<2>(most);
#pragma unroll 4
    for (u32 chunk = 0; chunk < COLUMNS / 8; chunk++) {
        const float4 four = own[2 * chunk];
        sum += exp2_approx((four.x - most) * LOG2_E) + exp2_approx((four.y - most) * LOG2_E);
        sum += exp2_approx((four.z - most) * LOG2_E) + exp2_approx((four.w - most) * LOG2_E);
    }
    sum = group_sum<2>(sum);
    total = group_sum<2>(total);
    row += lane / 2;
    if (x == 0 && row < info.rows)
        statistics[(u64)row * info.strips + info.first + column / COLUMNS] = make_float4(most, sum, total, 0.0f);
}

template <int COLUMNS, int PITCH>
__device__ __forceinline__ void end_tile(float* sums, u32 row, u32 column, END_PARAMETERS, const Info& info) {
    if (column + COLUMNS <= info.columns)
        write_statistics<COLUMNS, PITCH, true>(sums, row, column, END_ARGUMENTS, info);
    else if (column < info.columns)
        write_statistics<COLUMNS, PITCH, false>(sums, row, column, END_ARGUMENTS, info);
}
