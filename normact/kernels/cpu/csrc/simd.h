// One vector type for every kernel: the compiler's vector extension (GCC and Clang), as wide as the machine's registers.
//
// Arithmetic, comparison and `mask ? a : b` are the compiler's; intrinsics appear only where the extension has no word:
// masked loads and stores, the approximate reciprocal, max and min. Without AVX the same code compiles to SSE, NEON or scalars.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace normact {

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

struct bfloat16 {
  uint16_t bits;
};

PROXYNORM_INLINE Vec broadcast(float value) { return value - Vec{}; }

// a b + c, rounded once where the machine can. Left to the compiler it is once or twice, as the code around it happens to be
// arranged: where one value is written in two ways, it would differ between them.
PROXYNORM_INLINE Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(PROXYNORM_AVX512)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// A NaN in v stays, as in torch's relu and clamp. The x86 instructions return their second operand when either is a NaN.
PROXYNORM_INLINE Vec at_least(Vec v, Vec low) {
#if defined(PROXYNORM_AVX512)
  return (Vec)_mm512_max_ps((__m512)low, (__m512)v);
#else
  return v < low ? low : v;
#endif
}

PROXYNORM_INLINE Vec at_most(Vec v, Vec high) {
#if defined(PROXYNORM_AVX512)
  return (Vec)_mm512_min_ps((__m512)high, (__m512)v);
#else
  return v > high ? high : v;
#endif
}

PROXYNORM_INLINE Vec absolute(Vec v) { return (Vec)((BitsVec)v & 0x7fffffffu); }

// Always the same tree of additions, so that the sum never depends on anything but its terms.
PROXYNORM_INLINE float sum_lanes(Vec v) {
#if defined(PROXYNORM_AVX512)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float lane[LANES];
  std::memcpy(lane, &v, sizeof v);
  for (int width = LANES / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
#endif
}

PROXYNORM_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

PROXYNORM_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// ---- pairs: STEP consecutive elements in two vectors ---------------------------------------------------------------
//
// float32: the first and the second half. bfloat16: the even and the odd elements, since a bfloat16 is the upper half of a
// float32: a 32-bit word holds two, and a shift and a mask take it apart without a single shuffle.
// Elementwise work and sums do not care which element a lane holds; constants per channel are laid out by slot_of.

constexpr int STEP = 2 * LANES;
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the even bfloat16 is the lower half of its word");

struct Pair {
  Vec a, b;
};

template <typename T>
constexpr int64_t slot_of(int64_t c) {
  if constexpr (sizeof(T) == 4) return c;
  return c - c % STEP + c % 2 * LANES + c % STEP / 2;
}

template <typename F, typename... Pairs>
PROXYNORM_INLINE Pair both(F f, Pairs... pairs) {
  return {f(pairs.a...), f(pairs.b...)};
}

PROXYNORM_INLINE Pair broadcast_pair(float value) { return {broadcast(value), broadcast(value)}; }
PROXYNORM_INLINE float sum_lanes(Pair v) { return sum_lanes(v.a + v.b); }

PROXYNORM_INLINE Pair load_pair(const float* p) { return {load(p), load(p + LANES)}; }

PROXYNORM_INLINE void store_pair(float* p, Pair v) {
  store(p, v.a);
  store(p + LANES, v.b);
}

PROXYNORM_INLINE Pair widen(BitsVec words) { return {(Vec)(words << 16), (Vec)(words & 0xffff0000u)}; }

// To nearest even. No NaN becomes infinity: the arithmetic's own NaN is 0x7fc00000, and one that came from a bfloat16 has zeros
// below, so that the rounding cannot carry.
PROXYNORM_INLINE BitsVec rounded(Vec v) {
  const BitsVec bits = (BitsVec)v;
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}

PROXYNORM_INLINE BitsVec narrow(Pair v) { return (rounded(v.a) >> 16) | (rounded(v.b) & 0xffff0000u); }

PROXYNORM_INLINE Pair load_pair(const bfloat16* p) {
  BitsVec words;
  std::memcpy(&words, p, sizeof words);
  return widen(words);
}

PROXYNORM_INLINE void store_pair(bfloat16* p, Pair v) {
  const BitsVec words = narrow(v);
  std::memcpy(p, &words, sizeof words);
}

// Asks for the lines of the pair that lies `ahead` bytes behind p. The hardware's prefetcher stops at each page of 4 KB; these
// brought reading from 9.8 to 10.8 GB/s a core and writing from 7.0 to 7.7.
template <typename T>
PROXYNORM_INLINE void prefetch_for_reading(const T* p, int64_t ahead = 2048) {
  for (int byte = 0; byte < STEP * (int)sizeof(T); byte += 64) __builtin_prefetch((const char*)p + ahead + byte);
}

template <typename T>
PROXYNORM_INLINE void prefetch_for_writing(T* p, int64_t ahead = 4096) {
  for (int byte = 0; byte < STEP * (int)sizeof(T); byte += 64) __builtin_prefetch((char*)p + ahead + byte, 1);
}

// ---- tails: the first `live` elements of a pair; the others read as zero, and no byte behind them is touched ---------

#if defined(PROXYNORM_AVX512)
PROXYNORM_INLINE uint32_t first_bits(int live) { return live >= 32 ? 0xffffffffu : (1u << live) - 1u; }

PROXYNORM_INLINE Pair load_first(const float* p, int live) {
  const uint32_t mask = first_bits(live);
  return {(Vec)_mm512_maskz_loadu_ps((__mmask16)mask, p), (Vec)_mm512_maskz_loadu_ps((__mmask16)(mask >> 16), p + LANES)};
}

PROXYNORM_INLINE void store_first(float* p, Pair v, int live) {
  const uint32_t mask = first_bits(live);
  _mm512_mask_storeu_ps(p, (__mmask16)mask, (__m512)v.a);
  _mm512_mask_storeu_ps(p + LANES, (__mmask16)(mask >> 16), (__m512)v.b);
}

PROXYNORM_INLINE Pair load_first(const bfloat16* p, int live) {
  return widen((BitsVec)_mm512_maskz_loadu_epi16(first_bits(live), p));
}

PROXYNORM_INLINE void store_first(bfloat16* p, Pair v, int live) {
  _mm512_mask_storeu_epi16(p, first_bits(live), (__m512i)narrow(v));
}
#else
template <typename T>
PROXYNORM_INLINE Pair load_first(const T* p, int live) {
  T element[STEP] = {};
  for (int i = 0; i < live; ++i) element[i] = p[i];
  return load_pair(element);
}

template <typename T>
PROXYNORM_INLINE void store_first(T* p, Pair v, int live) {
  T element[STEP];
  store_pair(element, v);
  for (int i = 0; i < live; ++i) p[i] = element[i];
}
#endif

// With a constant live == STEP the branch disappears.
template <typename T>
PROXYNORM_INLINE Pair load_pair(const T* p, int live) {
  return live == STEP ? load_pair(p) : load_first(p, live);
}

template <typename T>
PROXYNORM_INLINE void store_pair(T* p, Pair v, int live) {
  if (live == STEP) {
    store_pair(p, v);
  } else {
    store_first(p, v, live);
  }
}

// Past the caches where a pair lies on whole vectors of memory, else as store_pair. What is not read again soon then costs no
// reading of the lines that it replaces, and drives nothing out. Another thread sees it after a fence (with_stores).
PROXYNORM_INLINE void stream_vector(void* p, BitsVec v) {
#if defined(PROXYNORM_AVX512)
  _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i*)p, (__m256i)v);
#elif defined(__SSE2__)
  _mm_stream_si128((__m128i*)p, (__m128i)v);
#else
  std::memcpy(p, &v, sizeof v);
#endif
}

PROXYNORM_INLINE void stream_pair(float* p, Pair v) {
  stream_vector(p, (BitsVec)v.a);
  stream_vector(p + LANES, (BitsVec)v.b);
}

PROXYNORM_INLINE void stream_pair(bfloat16* p, Pair v) { stream_vector(p, narrow(v)); }

template <bool streamed, typename T>
PROXYNORM_INLINE void write_pair(T* p, Pair v, int live) {
  if (streamed && live == STEP && (uintptr_t)p % sizeof(Vec) == 0) {
    stream_pair(p, v);
  } else {
    store_pair(p, v, live);
  }
}

// Calls body(streamed), a constant there: one loop for each way of writing.
template <typename Body>
PROXYNORM_INLINE void with_stores(bool streamed, Body body) {
  if (!streamed) {
    body(std::false_type());
    return;
  }
  body(std::true_type());
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Zero in the elements behind `live`, for sums of what is not zero there: a padding zero minus a mean is not.
template <typename T>
PROXYNORM_INLINE Pair keep_first(Pair v, int live) {
  IntVec element_a, element_b;
  for (int lane = 0; lane < LANES; ++lane) {
    element_a[lane] = sizeof(T) == 4 ? lane : 2 * lane;
    element_b[lane] = sizeof(T) == 4 ? lane + LANES : 2 * lane + 1;
  }
  return {element_a < live ? v.a : Vec{}, element_b < live ? v.b : Vec{}};
}

}  // namespace normact
