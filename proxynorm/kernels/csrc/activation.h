// The activations and their slopes, on vectors. Each special function is written once, accurate to float32 rounding.
#pragma once

#include "simd.h"

namespace proxynorm {

enum class Activation { identity, relu, silu, gelu };

// 1 / v for 1 <= v < 1e37. The estimate has 14 bits, one Newton step 28; a division takes 16 cycles a vector, this 6.
PROXYNORM_INLINE Vec reciprocal(Vec v) {
#if defined(PROXYNORM_AVX512)
  const Vec estimate = (Vec)_mm512_maskz_rcp14_ps(0xffff, (__m512)v);
  return estimate + estimate * (1.0f - v * estimate);
#else
  return 1.0f / v;
#endif
}

// exp(v), v clamped to [-87, 87]: v = n ln2 + r with |r| <= ln2 / 2, a degree-6 polynomial in r, n added to the exponent.
PROXYNORM_INLINE Vec exponential(Vec v) {
  v = at_most(at_least(v, broadcast(-87.0f)), broadcast(87.0f));
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits.
  const float magic = 12582912.0f;
  const Vec shifted = v * 1.44269504f + magic;
  const Vec n = shifted - magic;
  Vec r = v - n * 0.693145752f;   // ln2 in two parts: the first has few enough bits for an exact product
  r = r - n * 1.42860677e-6f;
  Vec p = r * 1.38888889e-3f + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const BitsVec power_of_two = ((BitsVec)shifted << 23) + 0x3f800000u;
  return p * (Vec)power_of_two;
}

PROXYNORM_INLINE Vec sigmoid(Vec v) { return reciprocal(1.0f + exponential(-v)); }

// The standard normal density p(v), and Phi(-|v|) = exp(-v^2/2) t P(t), t = 1 / (1 + .21 |v|): P is a minimax polynomial
// (relative error 2e-8 on [0, 14]) fitted for this file; the tail form keeps Phi accurate on both sides.
struct Normal {
  Vec density, lower, upper;   // p(v), Phi(v), Phi(-v)
};

PROXYNORM_INLINE Normal normal_distribution(Vec v) {
  const Vec distance = absolute(v);
  const Vec bell = exponential(-0.5f * v * v);
  const Vec t = reciprocal(1.0f + 0.21f * at_most(distance, broadcast(1e30f)));
  Vec p = t * -0.0716563761f + 0.283588946f;
  p = p * t + -0.330254227f;
  p = p * t + 0.349402010f;
  p = p * t + -0.0939259380f;
  p = p * t + 0.124873050f;
  p = p * t + 0.0691920817f;
  p = p * t + 0.0850688666f;
  p = p * t + 0.0837115720f;
  const Vec tail = bell * (p * t);
  const Vec rest = 1.0f - tail;
  return {bell * 0.398942280f, v > 0.0f ? rest : tail, v > 0.0f ? tail : rest};
}

struct ValueAndSlope {
  Vec value, slope;
};

template <Activation kind>
PROXYNORM_INLINE ValueAndSlope value_and_slope(Vec z) {
  if constexpr (kind == Activation::identity) {
    return {z, broadcast(1.0f)};
  } else if constexpr (kind == Activation::relu) {
    // A NaN takes slope one, so that it reaches the gradient.
    return {at_least(z, Vec{}), z <= 0.0f ? Vec{} : broadcast(1.0f)};
  } else if constexpr (kind == Activation::silu) {
    const Vec gate = sigmoid(z);
    const Vec value = z * gate;
    return {value, gate + value * (1.0f - gate)};
  } else {
    const Normal normal = normal_distribution(z);
    return {z * normal.lower, normal.lower + z * normal.density};
  }
}

template <Activation kind>
PROXYNORM_INLINE Vec activate(Vec z) {
  return value_and_slope<kind>(z).value;
}

}  // namespace proxynorm
