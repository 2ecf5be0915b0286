// One vector type for every kernel: the compiler's vector extension (GCC and Clang), as wide as the machine's registers.
//
// Arithmetic, comparison and `mask ? a : b` are the compiler's; intrinsics appear only where the extension has no word:
// masked loads, streaming stores and the approximate reciprocal. Without AVX the same code compiles to SSE, NEON or scalars.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace proxynorm {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define PROXYNORM_AVX512 1
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

#define PROXYNORM_INLINE inline __attribute__((always_inline))

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef uint32_t BitsVec __attribute__((vector_size(4 * LANES)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * LANES)));

struct bfloat16 {
  uint16_t bits;
};

PROXYNORM_INLINE Vec broadcast(float value) { return value - Vec{}; }

// `v < low ? low : v` keeps a NaN in v, as torch's relu and clamp do; the machine's max instruction would drop it.
PROXYNORM_INLINE Vec at_least(Vec v, Vec low) { return v < low ? low : v; }
PROXYNORM_INLINE Vec at_most(Vec v, Vec high) { return v > high ? high : v; }
PROXYNORM_INLINE Vec absolute(Vec v) { return (Vec)((BitsVec)v & 0x7fffffffu); }

PROXYNORM_INLINE float sum_lanes(Vec v) {
  // A fixed tree: halves are added until one lane is left, so the order never depends on anything.
  float lane[LANES];
  std::memcpy(lane, &v, sizeof v);
  for (int width = LANES / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

// ---- float32 memory -------------------------------------------------------------------------------------------------

PROXYNORM_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

PROXYNORM_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// Reads the first `live` lanes, zero in the others, and touches no byte behind them.
PROXYNORM_INLINE Vec load_first(const float* p, int live) {
#if defined(PROXYNORM_AVX512)
  return (Vec)_mm512_maskz_loadu_ps((__mmask16)((1u << live) - 1u), p);
#else
  float lane[LANES] = {};
  for (int i = 0; i < live; ++i) lane[i] = p[i];
  return load(lane);
#endif
}

PROXYNORM_INLINE void store_first(float* p, Vec v, int live) {
#if defined(PROXYNORM_AVX512)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << live) - 1u), (__m512)v);
#else
  float lane[LANES];
  store(lane, v);
  for (int i = 0; i < live; ++i) p[i] = lane[i];
#endif
}

// A store that goes past the caches to memory; p is aligned to the vector. Elsewhere than on x86 it is a plain store.
PROXYNORM_INLINE void stream(float* p, Vec v) {
#if defined(PROXYNORM_AVX512)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)v);
#elif defined(__SSE2__)
  _mm_stream_ps(p, (__m128)v);
#else
  store(p, v);
#endif
}

// ---- bfloat16 memory: the upper half of a float32 -------------------------------------------------------------------

PROXYNORM_INLINE Vec widen(HalfVec half) { return (Vec)(__builtin_convertvector(half, BitsVec) << 16); }

// Round to nearest even; a NaN becomes the quiet NaN 0x7fc0, since adding to its mantissa could carry it into infinity.
PROXYNORM_INLINE HalfVec narrow(Vec v) {
  const BitsVec bits = (BitsVec)v;
  const BitsVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const BitsVec quiet_nan = BitsVec{} + 0x7fc0u;
  return __builtin_convertvector((v == v) ? rounded : quiet_nan, HalfVec);
}

PROXYNORM_INLINE Vec load(const bfloat16* p) {
  HalfVec half;
  std::memcpy(&half, p, sizeof half);
  return widen(half);
}

PROXYNORM_INLINE void store(bfloat16* p, Vec v) {
  const HalfVec half = narrow(v);
  std::memcpy(p, &half, sizeof half);
}

PROXYNORM_INLINE Vec load_first(const bfloat16* p, int live) {
#if defined(PROXYNORM_AVX512)
  return widen((HalfVec)_mm256_maskz_loadu_epi16((__mmask16)((1u << live) - 1u), p));
#else
  uint16_t lane[LANES] = {};
  for (int i = 0; i < live; ++i) lane[i] = p[i].bits;
  HalfVec half;
  std::memcpy(&half, lane, sizeof half);
  return widen(half);
#endif
}

PROXYNORM_INLINE void store_first(bfloat16* p, Vec v, int live) {
  const HalfVec half = narrow(v);
#if defined(PROXYNORM_AVX512)
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << live) - 1u), (__m256i)half);
#else
  uint16_t lane[LANES];
  std::memcpy(lane, &half, sizeof half);
  for (int i = 0; i < live; ++i) p[i].bits = lane[i];
#endif
}

PROXYNORM_INLINE void stream(bfloat16* p, Vec v) {
#if defined(PROXYNORM_AVX512)
  _mm256_stream_si256((__m256i*)p, (__m256i)narrow(v));
#elif defined(__AVX2__)
  _mm_stream_si128((__m128i*)p, (__m128i)narrow(v));
#else
  store(p, v);
#endif
}

// ---- choosing between whole vectors and tails: with a constant `live` the branch disappears ------------------------

template <typename T>
PROXYNORM_INLINE Vec load(const T* p, int live) {
  return live == LANES ? load(p) : load_first(p, live);
}

template <typename T>
PROXYNORM_INLINE void store(T* p, Vec v, int live) {
  if (live == LANES) {
    store(p, v);
  } else {
    store_first(p, v, live);
  }
}

// Lanes behind `live` become zero: a masked-out lane must not enter a sum (zero minus the centre is not zero).
PROXYNORM_INLINE Vec keep_first(Vec v, int live) {
  if (live == LANES) return v;
  IntVec index;
  for (int i = 0; i < LANES; ++i) index[i] = i;
  return index < live ? v : Vec{};
}

inline void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace proxynorm
