// Mean and sum of squared deviations, robust to means far larger than the deviation.
#pragma once

#include <algorithm>
#include <cmath>

#include "problem.h"

namespace proxynorm {

struct Moments {
  double count = 0, mean = 0, m2 = 0;

  // Chan, Golub, LeVeque: moments of the union of two sets.
  void merge(const Moments& other) {
    if (other.count == 0) return;
    const double total = count + other.count, delta = other.mean - mean;
    mean += delta * (other.count / total);
    m2 += other.m2 + delta * delta * (count * other.count / total);
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

// Two passes over a chunk small enough for the first-level cache, so that the second costs next to nothing: a rough mean, then
// shifted sums around it. Float32 sums of 4096 elements in 32 lanes lose nothing that float64 would keep.
constexpr int64_t MOMENT_CHUNK = 4096;

template <typename T>
inline Moments chunk_moments(const T* x, int64_t n) {
  const int64_t whole = n - n % STEP;
  const int rest = (int)(n - whole);

  Pair rough{};
  const auto add = [](Vec sum, Vec v) { return sum + v; };
  for (int64_t i = 0; i < whole; i += STEP) rough = both(add, rough, load_pair(x + i));
  if (rest) rough = both(add, rough, load_first(x + whole, rest));
  const float pivot = sum_lanes(rough) / (float)n;

  Pair sum{}, sum_of_squares{};
  const Vec center = broadcast(pivot);
  const auto shifted = [center](Vec v) { return v - center; };
  const auto accumulate = [&](Pair t) __attribute__((always_inline)) {
    sum = both(add, sum, t);
    sum_of_squares = both([](Vec squares, Vec v) { return squares + v * v; }, sum_of_squares, t);
  };
  for (int64_t i = 0; i < whole; i += STEP) accumulate(both(shifted, load_pair(x + i)));
  if (rest) accumulate(keep_first<T>(both(shifted, load_first(x + whole, rest)), rest));
  return moments_of_shifted_sums((double)n, pivot, sum_lanes(sum), sum_lanes(sum_of_squares));
}

template <typename T>
inline Moments contiguous_moments(const T* x, int64_t n) {
  Moments moments;
  for (int64_t i = 0; i < n; i += MOMENT_CHUNK) moments.merge(chunk_moments(x + i, std::min(MOMENT_CHUNK, n - i)));
  return moments;
}

}  // namespace proxynorm
