// log Σ exp of the logits of each row, from the statistics of its strips, and the row's loss. A warp takes a row.

struct Info {
    u32 samples; // rows of the batch
    u32 padded;  // the same with padding, whose lse is infinite: its softmax is zero
    u32 strips;
    u32 count;     // pairs of row and class
    float uniform; // ε / classes
};

extern "C" __global__ void __launch_bounds__(256)
row_loss(const float4* statistics, const u32* packed, const float* target_logits, float* lse, float* losses,
         const __grid_constant__ Info info) {
    const Targets targets(packed, info.count);
    const u32 lane = threadIdx.x % 32, row = blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= info.padded) return;
    if (row >= info.samples) {
        if (lane == 0) lse[row] = -NEGATIVE_INFINITY;
        return;
    }
    const float4* own = statistics + (u64)row * info.strips;
    float most = NEGATIVE_INFINITY, sum = 0.0f, expected = 0.0f;
    for (u32 strip = lane; strip < info.strips; strip += 32) most = fmaxf(most, own[strip].x);
    most = group_max<32>(most);
    for (u32 strip = lane; strip < info.strips; strip += 32) {
        const float4 part = own[strip];
        sum = fmaf(part.y, exp2_approx((part.x - most) * LOG2_E), sum);
        expected = fmaf(info.uniform, part.z, expected);
    }
    const u32 begin = row == 0 ? 0 : targets.ends[row - 1];
    for (u32 at = begin + lane; at < targets.ends[row]; at += 32) expected = fmaf(__uint_as_float(targets.shares[at]), target_logits[at], expected);
    const float found = most + logf(warp_sum(sum));
    expected = warp_sum(expected);
    if (lane == 0) {
        lse[row] = found;
        losses[row] = found - expected;
    }
}
