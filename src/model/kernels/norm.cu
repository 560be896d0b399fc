// Layer norm of each row, a warp a row. `out` may be `states`.

struct Info {
    u32 rows;
    float epsilon;
};

extern "C" __global__ void __launch_bounds__(256)
layer_norm(const bf16* states, const float* weight, const float* bias, bf16* out, const __grid_constant__ Info info) {
    const u32 row = blockIdx.x * 8 + threadIdx.x / 32;
    if (row >= info.rows) return;
    Row values;
    values.load(states + (u64)row * HIDDEN);
    values.normalise(weight, bias, info.epsilon);
    values.store(out + (u64)row * HIDDEN);
}
