// A row of HIDDEN bf16 values in the registers of a warp: chunk lane + 32·i of eight values is `values[8·i ..]`.

constexpr int CHUNKS = HIDDEN / 8;
constexpr int PER_LANE = (CHUNKS + 31) / 32;

struct Row {
    float values[8 * PER_LANE];

    __device__ __forceinline__ static u32 chunk(int i) {
        return threadIdx.x % 32 + 32 * i;
    }

    __device__ __forceinline__ static bool present(int i) {
        return CHUNKS % 32 == 0 || chunk(i) < CHUNKS;
    }

    __device__ __forceinline__ void load(const bf16* from) {
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            uint4 eight = make_uint4(0, 0, 0, 0);
            if (present(i)) eight = *reinterpret_cast<const uint4*>(from + 8 * chunk(i));
            unpack(eight, values + 8 * i);
        }
    }

    // Layer norm; mean and variance in f32, one after the other.
    __device__ __forceinline__ void normalise(const float* weight, const float* bias, float epsilon) {
        float sum = 0.0f;
#pragma unroll
        for (int at = 0; at < 8 * PER_LANE; at++) sum += values[at];
        const float mean = warp_sum(sum) * (1.0f / HIDDEN);
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (present(i)) {
#pragma unroll
                for (int at = 8 * i; at < 8 * i + 8; at++) {
                    values[at] -= mean;
                    squares = fmaf(values[at], values[at], squares);
                }
            }
        const float factor = rsqrtf(warp_sum(squares) * (1.0f / HIDDEN) + epsilon);
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (present(i)) {
#pragma unroll
                for (int four = 0; four < 2; four++) {
                    const float4 w = *reinterpret_cast<const float4*>(weight + 8 * chunk(i) + 4 * four);
                    const float4 b = *reinterpret_cast<const float4*>(bias + 8 * chunk(i) + 4 * four);
                    float* to = values + 8 * i + 4 * four;
                    to[0] = fmaf(to[0] * factor, w.x, b.x);
                    to[1] = fmaf(to[1] * factor, w.y, b.y);
                    to[2] = fmaf(to[2] * factor, w.z, b.z);
                    to[3] = fmaf(to[3] * factor, w.w, b.w);
                }
            }
    }

    __device__ __forceinline__ void store(bf16* to) const {
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (present(i)) *reinterpret_cast<uint4*>(to + 8 * chunk(i)) = pack_eight(values + 8 * i);
    }
};
