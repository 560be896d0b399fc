// Shared by all kernels. No header is included: NVRTC then compiles a kernel in tenths of a second.
//
// bf16 values are their bits: the upper half of an f32.

typedef unsigned char u8;
typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define NEGATIVE_INFINITY __int_as_float(0xFF800000)
#define LOG2_E 1.44269504f

// Writes two values as bf16, rounded to nearest even; `low` has the lower address.
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

__device__ __forceinline__ float low_half(u32 both) {
    return __uint_as_float(both << 16);
}

__device__ __forceinline__ float high_half(u32 both) {
    return __uint_as_float(both & 0xFFFF0000u);
}

// Unpacks eight values.
__device__ __forceinline__ void unpack(uint4 from, float* to) {
    const u32 words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int at = 0; at < 4; at++) {
        to[2 * at] = low_half(words[at]);
        to[2 * at + 1] = high_half(words[at]);
    }
}

__device__ __forceinline__ uint4 pack_eight(const float* from) {
    return make_uint4(pack(from[0], from[1]), pack(from[2], from[3]), pack(from[4], from[5]), pack(from[6], from[7]));
}

// Index of the warp, in a form that the compiler knows to be the same for its threads.
__device__ __forceinline__ u32 warp_index() {
    return __shfl_sync(0xFFFFFFFFu, threadIdx.x / 32, 0);
}

// Sum over groups of LANES lanes.
template <int LANES> __device__ __forceinline__ float group_sum(float value) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, step);
    return value;
}

template <int LANES> __device__ __forceinline__ float group_max(float value) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, step));
    return value;
}

__device__ __forceinline__ float warp_sum(float value) {
    return group_sum<32>(value);
}

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes to shared memory, or writes zeros if `present` is false.
__device__ __forceinline__ void copy_async(u32 to, const void* from, bool present) {
    const u32 bytes = present ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `LEFT` groups of this thread's copies are under way.
template <int LEFT> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Loads four matrices of 8 × 8; lane i gives the address of row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
}

// sum[16 × 8] += left[16 × 16] · right[16 × 8].
__device__ __forceinline__ void multiply(float (&sum)[4], const u32 (&left)[4], u32 right_low, u32 right_high) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right_low), "r"(right_high));
}
