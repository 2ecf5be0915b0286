// Mean and sum of squared deviations in one reading, robust to means far larger than the deviation.
#pragma once

#include <algorithm>
#include <cmath>

#include "problem.h"

namespace normact {

struct Moments {
  double count = 0, mean = 0, m2 = 0;

  // Chan, Golub, LeVeque: moments of the union of two sets.
  void merge(const Moments& other) {
    if (other.count == 0) return;
    const double total = count + other.count, delta = other.mean - mean, share = other.count / total;
    mean += delta * share;
    m2 += other.m2 + delta * delta * (count * share);
    count = total;
  }
};

// Sums of (v - pivot) and its square, in float32, to moments: any pivot is right, one near the mean loses no digits.
inline Moments moments_of_shifted_sums(double count, double pivot, double sum, double sum_of_squares) {
  const double mean = sum / count;
  return {count, pivot + mean, std::max(sum_of_squares - sum * mean, 0.0)};
}

inline GroupStatistics group_statistics(const Moments& moments, double eps) {
  return {moments.mean, 1.0 / std::sqrt(moments.m2 / moments.count + eps)};
}

struct ShiftedSums {
  Pair sum{}, squares{};

  PROXYNORM_INLINE void add(Pair t) {
    sum = both([](Vec s, Vec v) { return s + v; }, sum, t);
    squares = both([](Vec s, Vec v) { return s + v * v; }, squares, t);
  }
};

template <typename T>
inline float plain_mean(const T* x, int64_t n) {
  Pair sum{};
  for (int64_t i = 0; i < n; i += STEP) {
    sum = both([](Vec s, Vec v) { return s + v; }, sum, load_pair(x + i, (int)std::min<int64_t>(STEP, n - i)));
  }
  return sum_lanes(sum) / (float)n;
}

template <typename T>
inline Moments chunk_moments(const T* x, int64_t n, float pivot) {
  const Vec center = broadcast(pivot);
  const auto shifted = [center](Vec v) { return v - center; };
  ShiftedSums even, odd;   // two, since an addition takes as long as reading two pairs
  int64_t i = 0;
  for (; i + 2 * STEP <= n; i += 2 * STEP) {
    prefetch_for_reading(x + i);
    prefetch_for_reading(x + i + STEP);
    even.add(both(shifted, load_pair(x + i)));
    odd.add(both(shifted, load_pair(x + i + STEP)));
  }
  if (i + STEP <= n) {
    even.add(both(shifted, load_pair(x + i)));
    i += STEP;
  }
  if (i < n) odd.add(keep_first<T>(both(shifted, load_first(x + i, (int)(n - i))), (int)(n - i)));
  const auto add = [](Vec a, Vec b) { return a + b; };
  return moments_of_shifted_sums((double)n, pivot, sum_lanes(both(add, even.sum, odd.sum)),
                                 sum_lanes(both(add, even.squares, odd.squares)));
}

// Adds n elements, read once. A chunk's pivot is the mean of all before it, and it is no larger than they: by the formula of
// merge(), what float32 loses of its squares is at most a few roundings of the whole m2. The first chunk is read twice, from the
// first-level cache. Float32 sums of 4096 elements in 64 lanes lose nothing that float64 would keep.
constexpr int64_t FIRST_MOMENT_CHUNK = 1024, MOMENT_CHUNK = 4096;

template <typename T>
inline void add_moments(Moments& moments, const T* x, int64_t n) {
  int64_t i = 0;
  if (moments.count == 0) {
    i = std::min(n, FIRST_MOMENT_CHUNK);
    moments.merge(chunk_moments(x, i, plain_mean(x, i)));
  }
  while (i < n) {
    const int64_t size = std::min({n - i, MOMENT_CHUNK, (int64_t)moments.count});
    moments.merge(chunk_moments(x + i, size, (float)moments.mean));
    i += size;
  }
}

}  // namespace normact
