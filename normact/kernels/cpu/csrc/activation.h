// The activations and their slopes, on vectors. Each special function is written once, accurate to float32 rounding.
//
// T is the type that the result is stored in. A bfloat16 keeps 2^-9 of it, so there exponentials and reciprocals stop at 2^-13:
// five of about 35 operations a vector, 11 % of a SiLU layer (benchmarks/NOTES.md).
#pragma once

#include "simd.h"

namespace normact {

enum class Activation { identity, relu, silu, gelu };

template <typename T>
constexpr bool is_short = sizeof(T) == 2;

// 1 / v for 1 <= v < 1e37. The estimate has 14 bits, one Newton step 28: three cheap instructions instead of a long division.
template <typename T>
PROXYNORM_INLINE Vec reciprocal(Vec v) {
#if defined(PROXYNORM_AVX512)
  const Vec estimate = (Vec)_mm512_maskz_rcp14_ps(0xffff, (__m512)v);
  return is_short<T> ? estimate : estimate + estimate * (1.0f - v * estimate);
#else
  return 1.0f / v;
#endif
}

// 2^(v * log2_base), its exponent bounded to +-EXPONENT_BOUND: n is the nearest integer, 2^f a polynomial in the rest f, minimax in
// relative error (degree 5: 1e-7; degree 3: 7.5e-5). One multiply-add for f is enough: its error grows with |v|, where the
// callers' results are tiny. The bound keeps products with further small factors above the subnormal numbers, which cost 150
// cycles each.
constexpr float EXPONENT_BOUND = 80.0f;

template <typename T>
PROXYNORM_INLINE Vec power(Vec v, float log2_base) {
  const float bound = EXPONENT_BOUND / (log2_base < 0 ? -log2_base : log2_base);
  v = at_most(at_least(v, broadcast(-bound)), broadcast(bound));
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits; 127 more make it the exponent of 2^n.
  const float magic = 12582912.0f + 127.0f;
  const Vec shifted = v * log2_base + magic;
  const Vec n = shifted - magic;
  const Vec f = v * log2_base - n;
  const Vec scale = (Vec)((BitsVec)shifted << 23);
  if constexpr (is_short<T>) return (((f * 0.05517167f + 0.24261113f) * f + 0.69326099f) * f + 0.99992807f) * scale;
  // Two halves side by side: a chain of five multiply-adds cost 5 % of a SiLU backward.
  const Vec f2 = f * f;
  const Vec high = (f * 1.3264727e-3f + 9.671513e-3f) * f2 + (f * 0.055507336f + 0.24022242f);
  const Vec p = high * f2 + (f * 0.693147f + 1.0f);
  return p * scale;
}

constexpr float LOG2_E = 1.44269504f;

template <typename T>
PROXYNORM_INLINE Vec sigmoid(Vec v) {
  return reciprocal<T>(1.0f + power<T>(v, -LOG2_E));
}

// The standard normal density p(v), and Phi(-|v|) = exp(-v^2/2) t P(t), t = 1 / (1 + .36 |v|): P is a minimax polynomial
// fitted for this file (error of Phi 9e-8 in float32); the tail form keeps Phi accurate on both sides.
struct Normal {
  Vec density, lower, upper;   // p(v), Phi(v), Phi(-v)
};

template <typename T>
PROXYNORM_INLINE Normal normal_distribution(Vec v) {
  const Vec distance = at_most(absolute(v), broadcast(1e15f));
  const Vec bell = power<T>(distance * distance, -0.5f * LOG2_E);
  const Vec t = reciprocal<T>(1.0f + 0.36f * distance);
  Vec p = t * -0.0296535864f + 0.136440307f;
  p = p * t + -0.216863438f;
  p = p * t + 0.0993090272f;
  p = p * t + 0.00534148933f;
  p = p * t + 0.0935728401f;
  p = p * t + 0.124633595f;
  p = p * t + 0.143597394f;
  p = p * t + 0.143622339f;
  const Vec tail = bell * (p * t);
  const Vec rest = 1.0f - tail;
  return {bell * 0.398942280f, v > 0.0f ? rest : tail, v > 0.0f ? tail : rest};
}

struct ValueAndSlope {
  Vec value, slope;
};

template <Activation kind, typename T>
PROXYNORM_INLINE ValueAndSlope value_and_slope(Vec z) {
  if constexpr (kind == Activation::identity) {
    return {z, broadcast(1.0f)};
  } else if constexpr (kind == Activation::relu) {
    // A NaN takes slope one, so that it reaches the gradient.
    return {at_least(z, Vec{}), z <= 0.0f ? Vec{} : broadcast(1.0f)};
  } else if constexpr (kind == Activation::silu) {
    const Vec gate = sigmoid<T>(z);
    const Vec value = z * gate;
    return {value, gate + value * (1.0f - gate)};
  } else {
    const Normal normal = normal_distribution<T>(z);
    return {z * normal.lower, normal.lower + z * normal.density};
  }
}

template <Activation kind, typename T>
PROXYNORM_INLINE Vec activate(Vec z) {
  return value_and_slope<kind, T>(z).value;
}

}  // namespace normact
