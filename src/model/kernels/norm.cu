// Layer norm of rows, a warp a row: `states` has `pitch` values from row to row, `out` HIDDEN. `out` may be `states` if `pitch` is HIDDEN.

struct Info {
    u32 rows;
    float epsilon;
    u32 pitch;
    u32 unused;
};

extern "C" __global__ void __launch_bounds__(256)
layer_norm(const bf16* states, const float* weight, const float* bias, bf16* out, const __grid_constant__ Info info) {
    const u32 row = blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= info.rows) return;
    Row values;
    values.load(states + (u64)row * info.pitch);
    values.normalise(weight, bias, info.epsilon);
    values.store(out + (u64)row * HIDDEN);
}
