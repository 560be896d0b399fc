// Writes the differences of target classes from f32: softmax less the share of label smoothing and that of the target. A thread takes
// a pair; a launch covers a part of the classes.

struct Info {
    u32 count;   // pairs
    u32 first;   // class of the part
    u32 classes; // of the part
    u32 padded;  // rows of the batch
    float uniform;
};

extern "C" __global__ void __launch_bounds__(256)
set_targets(const u32* packed, const float* logits, const float* lse, bf16* difference, const __grid_constant__ Info info) {
    const Targets targets(packed, info.count);
    const u32 at = blockIdx.x * 256 + threadIdx.x;
    if (at >= info.count) return;
    const u32 within = targets.classes[at] - info.first, row = targets.rows[at];
    if (within >= info.classes) return;
    const float softmax = exp2_approx((logits[at] - lse[row]) * LOG2_E);
    const float value = softmax - info.uniform - __uint_as_float(targets.shares[at]);
    difference[(u64)within * info.padded + row] = (bf16)pack(value, 0.0f);
}
