// Vectors of several 16-byte lanes: two under AVX2, four under AVX-512. Every operation stays within its lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace lanes {

inline void store_first(uint8_t* p, __m128i v) {
  const int32_t first = _mm_cvtsi128_si32(v);  // _mm_storeu_si32 came with GCC 11
  std::memcpy(p, &first, sizeof(first));
}

#if defined(__AVX512BW__)

constexpr int kLanes = 4;
using Vector = __m512i;

inline Vector load(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Vector load_each(const uint8_t* const* p, int64_t offset) {
  Vector v = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p[0] + offset)));
  v = _mm512_mask_broadcast_i32x4(v, 0x00F0, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p[1] + offset)));
  v = _mm512_mask_broadcast_i32x4(v, 0x0F00, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p[2] + offset)));
  return _mm512_mask_broadcast_i32x4(v, 0xF000, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p[3] + offset)));
}
inline Vector repeat(__m128i lane) { return _mm512_broadcast_i32x4(lane); }
inline Vector fill(int32_t value) { return _mm512_set1_epi32(value); }
inline Vector zero() { return _mm512_setzero_si512(); }
inline Vector shuffle(Vector v, Vector order) { return _mm512_shuffle_epi8(v, order); }
inline Vector add(Vector a, Vector b) { return _mm512_add_epi32(a, b); }
inline Vector sums_of_pairs(Vector a, Vector b) { return _mm512_madd_epi16(a, b); }
inline Vector shift_right(Vector v, int bits) { return _mm512_sra_epi32(v, _mm_cvtsi32_si128(bits)); }
inline Vector low_bytes(Vector a, Vector b) { return _mm512_unpacklo_epi8(a, b); }
inline Vector high_bytes(Vector a, Vector b) { return _mm512_unpackhi_epi8(a, b); }
inline Vector to_bytes(Vector a, Vector b, Vector c, Vector d) {
  return _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
}
// Groups of four bytes, one for each lane, to one run for each place in the group.
inline Vector gather_groups(Vector v) {
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
}
inline void store(uint8_t* p, Vector v) { _mm512_storeu_si512(p, v); }
inline void store_firsts(uint8_t* const* p, int64_t offset, Vector v) {
  store_first(p[0] + offset, _mm512_castsi512_si128(v));
  store_first(p[1] + offset, _mm512_extracti32x4_epi32(v, 1));
  store_first(p[2] + offset, _mm512_extracti32x4_epi32(v, 2));
  store_first(p[3] + offset, _mm512_extracti32x4_epi32(v, 3));
}

#else

constexpr int kLanes = 2;
using Vector = __m256i;

inline Vector load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Vector load_each(const uint8_t* const* p, int64_t offset) {
  const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p[0] + offset));
  const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p[1] + offset));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
}
inline Vector repeat(__m128i lane) { return _mm256_broadcastsi128_si256(lane); }
inline Vector fill(int32_t value) { return _mm256_set1_epi32(value); }
inline Vector zero() { return _mm256_setzero_si256(); }
inline Vector shuffle(Vector v, Vector order) { return _mm256_shuffle_epi8(v, order); }
inline Vector add(Vector a, Vector b) { return _mm256_add_epi32(a, b); }
inline Vector sums_of_pairs(Vector a, Vector b) { return _mm256_madd_epi16(a, b); }
inline Vector shift_right(Vector v, int bits) { return _mm256_sra_epi32(v, _mm_cvtsi32_si128(bits)); }
inline Vector low_bytes(Vector a, Vector b) { return _mm256_unpacklo_epi8(a, b); }
inline Vector high_bytes(Vector a, Vector b) { return _mm256_unpackhi_epi8(a, b); }
inline Vector to_bytes(Vector a, Vector b, Vector c, Vector d) {
  return _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
}
inline Vector gather_groups(Vector v) {
  return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
inline void store(uint8_t* p, Vector v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline void store_firsts(uint8_t* const* p, int64_t offset, Vector v) {
  store_first(p[0] + offset, _mm256_castsi256_si128(v));
  store_first(p[1] + offset, _mm256_extracti128_si256(v, 1));
}

#endif

}  // namespace lanes
