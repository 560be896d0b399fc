// The update of a weight: g ← g + λ·w, v ← μ·v + g, w ← w - rate·v. Without momentum, v is left unchanged.

struct Rule {
    float decay;    // λ
    float momentum; // μ
    float rate;
};

__device__ __forceinline__ void apply(float& value, float& velocity, float gradient, const Rule& rule) {
    gradient = fmaf(rule.decay, value, gradient);
    if (rule.momentum > 0.0f) {
        velocity = fmaf(rule.momentum, velocity, gradient);
        gradient = velocity;
    }
    value = fmaf(-rule.rate, gradient, value);
}
