// The feature of one image a block, from its tokens: `features` is [images, pitch], with `pitch` values a row.
//
// POOLING: 0 norm of the first token; 1 mean of the patches' norms; 2 both, one after the other; 3 mean of the patches without a norm; 4 norm
// of the mean of the patches; 5 norm of the first token, then that of the mean.

#define FIRST_TOKEN (POOLING == 0 || POOLING == 2 || POOLING == 5)
#define MEAN (POOLING != 0)
#define NORM_OF_TOKENS (POOLING == 1 || POOLING == 2)
#define NORM_OF_MEAN (POOLING == 4 || POOLING == 5)

struct Info {
    u32 tokens;  // of an image
    u32 leading; // tokens before the patches
    u32 pitch;
    u32 column;  // where the feature starts in its row
    float epsilon;
    u32 unused;
};

constexpr int WARPS = 4;

__shared__ __align__(16) float parts[WARPS][HIDDEN];

extern "C" __global__ void __launch_bounds__(32 * WARPS)
pool(const bf16* states, const float* weight, const float* bias, bf16* features, const __grid_constant__ Info info) {
    const u32 warp = threadIdx.x / 32;
    const bf16* tokens = states + (u64)blockIdx.x * info.tokens * HIDDEN;
    bf16* feature = features + (u64)blockIdx.x * info.pitch + info.column;
    Row row;
#if FIRST_TOKEN
    if (warp == 0) {
        row.load(tokens);
        row.normalise(weight, bias, info.epsilon);
        row.store(feature);
    }
#endif
#if MEAN
    float sums[8 * PER_LANE];
#pragma unroll
    for (int at = 0; at < 8 * PER_LANE; at++) sums[at] = 0.0f;
    for (u32 token = info.leading + warp; token < info.tokens; token += WARPS) {
        row.load(tokens + (u64)token * HIDDEN);
#if NORM_OF_TOKENS
        row.normalise(weight, bias, info.epsilon);
#endif
#pragma unroll
        for (int at = 0; at < 8 * PER_LANE; at++) sums[at] += row.values[at];
    }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        if (Row::present(i)) {
#pragma unroll
            for (int four = 0; four < 2; four++) {
                const float* from = sums + 8 * i + 4 * four;
                *reinterpret_cast<float4*>(&parts[warp][8 * Row::chunk(i) + 4 * four]) = make_float4(from[0], from[1], from[2], from[3]);
            }
        }
    __syncthreads();
    const float factor = 1.0f / (float)(info.tokens - info.leading);
#if NORM_OF_MEAN
    if (warp != 0) return;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
#pragma unroll
        for (int at = 0; at < 8; at++) {
            float sum = 0.0f;
            if (Row::present(i))
#pragma unroll
                for (int other = 0; other < WARPS; other++) sum += parts[other][8 * Row::chunk(i) + at];
            row.values[8 * i + at] = sum * factor;
        }
    row.normalise(weight, bias, info.epsilon);
    row.store(feature + (FIRST_TOKEN ? HIDDEN : 0));
#else
    for (u32 at = 2 * threadIdx.x; at < HIDDEN; at += 64 * WARPS) {
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int other = 0; other < WARPS; other++) {
            sum.x += parts[other][at];
            sum.y += parts[other][at + 1];
        }
        *reinterpret_cast<u32*>(feature + (FIRST_TOKEN ? HIDDEN : 0) + at) = pack(sum.x * factor, sum.y * factor);
    }
#endif
#endif
}
