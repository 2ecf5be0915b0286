// The fused step for (N, C, pixels): the unit of work is one group of one image, which fits the second-level cache, so that
// its second reading is nearly free. Units are independent: no atomics, and the thread count changes no bit.
#pragma once

#include <vector>

#include "moments.h"

namespace proxynorm {

constexpr int64_t GRADIENT_CHUNK = 2048;   // elements summed in float32 lanes before they go to float64

// Calls body(i, live) for i over [0, n) in pairs.
template <typename Body>
PROXYNORM_INLINE void for_each_pair(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + STEP <= n; i += STEP) body(i, STEP);
  if (i < n) body(i, (int)(n - i));
}

template <Activation kind, typename T>
void map_row(const T* x, T* out, int64_t n, const FoldedMap& map) {
  const FoldedVectors vectors = {broadcast(map.center), broadcast(map.scale), broadcast(map.offset), broadcast(map.gain),
                                 broadcast(map.shift)};
  for_each_pair(n, [&](int64_t i, int live) __attribute__((always_inline)) {
    const Pair v = both([&](Vec v) __attribute__((always_inline)) { return mapped<kind>(v, vectors); }, load_pair(x + i, live));
    store_pair(out + i, v, live);
  });
}

template <typename T>
GroupStatistics group_statistics_nchw(const Shape& shape, const T* image, int64_t group) {
  const int64_t size = shape.group_channels();
  Moments moments;
  if (!shape.strided) {
    moments = contiguous_moments(image + group * size * shape.pixels, size * shape.pixels);
  } else {
    for (int64_t j = 0; j < size; ++j) {
      moments.merge(contiguous_moments(image + shape.channel_of(group, j) * shape.pixels, shape.pixels));
    }
  }
  return group_statistics(moments, shape.eps);
}

template <Activation kind, typename T>
void map_group_nchw(const Shape& shape, const Channels& channels, const T* image, T* out, int64_t group,
                    const GroupStatistics& statistics) {
  for (int64_t j = 0; j < shape.group_channels(); ++j) {
    const int64_t c = shape.channel_of(group, j);
    const FoldedMap map = folded_map<kind>(channel_map(channels, c, statistics));
    map_row<kind>(image + c * shape.pixels, out + c * shape.pixels, shape.pixels, map);
  }
}

template <Activation kind, typename T>
GradientSums gradient_sums_row(const T* x, const T* grad, int64_t n, const ChannelMap& map) {
  const Vec center = broadcast(map.center), scale = broadcast(map.scale), offset = broadcast(map.offset);
  GradientSums sums = {};
  for (int64_t begin = 0; begin < n; begin += GRADIENT_CHUNK) {
    LaneSums a{}, b{};
    // Behind the row's end the gradient is zero, and so is all that it adds.
    for_each_pair(std::min(GRADIENT_CHUNK, n - begin), [&](int64_t i, int live) __attribute__((always_inline)) {
      const Pair g = load_pair(grad + begin + i, live), v = load_pair(x + begin + i, live);
      accumulate<kind>(a, g.a, v.a - center, scale, offset);
      accumulate<kind>(b, g.b, v.b - center, scale, offset);
    });
    sums.g += sum_lanes(a.g + b.g);
    sums.d += sum_lanes(a.d + b.d);
    sums.d_t += sum_lanes(a.d_t + b.d_t);
    if constexpr (!value_sum_follows<kind>) sums.g_value += sum_lanes(a.g_value + b.g_value);
  }
  finish_sums<kind>(sums, map);
  return sums;
}

template <Activation kind, typename T>
void input_gradient_row(const T* x, const T* grad, T* dx, int64_t n, const ChannelMap& map, float slope,
                        const GroupGradient& group) {
  const InputGradientVectors vectors = {broadcast(map.center), broadcast(map.scale), broadcast(map.offset),
                                        broadcast(slope),      broadcast(group.tilt), broadcast(group.level)};
  const auto gradient = [&](Vec v, Vec g) __attribute__((always_inline)) { return input_gradient<kind>(v, g, vectors); };
  for_each_pair(n, [&](int64_t i, int live) __attribute__((always_inline)) {
    store_pair(dx + i, both(gradient, load_pair(x + i, live), load_pair(grad + i, live)), live);
  });
}

template <Activation kind, typename T>
void backward_group_nchw(const Shape& shape, const Channels& channels, const T* image, const T* grad, T* dx, int64_t n,
                         int64_t group, const GroupStatistics& statistics, const PartialGradients& partial) {
  thread_local std::vector<ChannelMap> maps;   // of the group, for the second pass
  maps.resize(shape.group_channels());
  double sum_h = 0, sum_h_y = 0;
  for (int64_t j = 0; j < shape.group_channels(); ++j) {
    const int64_t c = shape.channel_of(group, j), at = c * shape.pixels;
    const ChannelMap map = maps[j] = channel_map(channels, c, statistics);
    const GradientSums sums = gradient_sums_row<kind>(image + at, grad + at, shape.pixels, map);
    channel_gradients(sums, map, channels.gamma[c], statistics, n * shape.channels + c, partial, sum_h, sum_h_y);
  }
  const double count = (double)(shape.group_channels() * shape.pixels);
  const GroupGradient gradient = group_gradient(statistics, sum_h / count, sum_h_y / count);
  for (int64_t j = 0; j < shape.group_channels(); ++j) {
    const int64_t c = shape.channel_of(group, j), at = c * shape.pixels;
    input_gradient_row<kind>(image + at, grad + at, dx + at, shape.pixels, maps[j],
                             maps[j].scale * maps[j].proxy_inverse_std, gradient);
  }
}

}  // namespace proxynorm
