// The fused step for (N, C, pixels): the unit of work is one group of one image, which fits the second-level cache, so that
// its second reading is nearly free. Units are independent: no atomics, and the thread count changes no bit.
#pragma once

#include "kept.h"
#include "moments.h"

namespace normact {

constexpr int64_t GRADIENT_CHUNK = 4096;   // elements summed in float32 lanes before they go to float64

// Calls body(i, live) for i over [0, n) in pairs.
template <typename Body>
PROXYNORM_INLINE void for_each_pair(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + STEP <= n; i += STEP) body(i, STEP);
  if (i < n) body(i, (int)(n - i));
}

template <typename T>
GroupStatistics group_statistics_nchw(const Shape& shape, const T* image, int64_t group) {
  const int64_t size = shape.group_channels;
  Moments moments;
  if (!shape.strided) {
    add_moments(moments, image + group * size * shape.pixels, size * shape.pixels);
  } else {
    for (int64_t j = 0; j < size; ++j) add_moments(moments, image + shape.channel_of(group, j) * shape.pixels, shape.pixels);
  }
  return group_statistics(moments, shape.eps);
}

template <Activation kind, bool streamed, typename T>
PROXYNORM_INLINE void map_row(const T* x, T* out, int64_t n, float center, const ForwardConstants& constants) {
  const ForwardVectors map = {broadcast(center), broadcast(constants.scale), broadcast(constants.offset),
                              broadcast(constants.gain), broadcast(constants.shift)};
  for_each_pair(n, [&](int64_t i, int live) __attribute__((always_inline)) {
    if (!streamed) prefetch_for_writing(out + i);
    const Pair v = load_pair(x + i, live);
    write_pair<streamed>(out + i, {mapped<kind, T>(v.a, map), mapped<kind, T>(v.b, map)}, live);
  });
}

template <Activation kind, typename T>
void map_group_nchw(const Shape& shape, const Channels& channels, const T* image, T* out, int64_t group,
                    const GroupStatistics& statistics, bool streamed) {
  const GroupConstants constants(statistics);
  with_stores(streamed, [&](auto streamed) __attribute__((always_inline)) {
    for (int64_t j = 0; j < shape.group_channels; ++j) {
      const int64_t c = shape.channel_of(group, j), at = c * shape.pixels;
      map_row<kind, streamed()>(image + at, out + at, shape.pixels, constants.center,
                                forward_constants<kind>(channels, c, constants));
    }
  });
}

// `kept`, if not null, receives d.
template <Activation kind, typename T>
PROXYNORM_INLINE ChannelTotals sum_row(const T* x, const T* grad, int64_t n, const BackwardVectors& map, float* kept) {
  ChannelTotals sums = {};
  for (int64_t begin = 0; begin < n; begin += GRADIENT_CHUNK) {
    LaneSums a{}, b{};
    // Behind the row's end the gradient is zero, and so is all that it adds.
    for_each_pair(std::min(GRADIENT_CHUNK, n - begin), [&](int64_t i, int live) __attribute__((always_inline)) {
      prefetch_for_reading(grad + begin + i);
      prefetch_for_reading(x + begin + i);
      const Pair g = load_pair(grad + begin + i, live), v = load_pair(x + begin + i, live);
      const Pair d = {accumulate<kind, T>(a, v.a, g.a, map), accumulate<kind, T>(b, v.b, g.b, map)};
      if (kept) store_pair(kept + begin + i, d);
    });
    sums.g += sum_lanes(a.g + b.g);
    sums.d += sum_lanes(a.d + b.d);
    sums.d_t += sum_lanes(a.d_t + b.d_t);
    if constexpr (!is_piecewise_linear<kind>) sums.g_value += sum_lanes(a.g_value + b.g_value);
  }
  return sums;
}

template <Activation kind, bool streamed, typename T>
PROXYNORM_INLINE void input_gradient_row(const T* x, const T* grad, T* dx, int64_t n, const InputGradientVectors& constants,
                                         const float* kept) {
  const auto write = [&](int64_t i, int live, Pair v, Pair d) __attribute__((always_inline)) {
    if (!streamed) prefetch_for_writing(dx + i);
    write_pair<streamed>(dx + i, {input_gradient(v.a, d.a, constants), input_gradient(v.b, d.b, constants)}, live);
  };
  if (kept) {
    for_each_pair(n, [&](int64_t i, int live) __attribute__((always_inline)) {
      write(i, live, load_pair(x + i, live), load_pair(kept + i));
    });
  } else {
    for_each_pair(n, [&](int64_t i, int live) __attribute__((always_inline)) {
      const Pair v = load_pair(x + i, live), g = load_pair(grad + i, live);
      write(i, live, v, {gradient_of_z<kind, T>(v.a, g.a, constants.map), gradient_of_z<kind, T>(v.b, g.b, constants.map)});
    });
  }
}

PROXYNORM_INLINE BackwardVectors row_vectors(float center, const BackwardConstants& constants) {
  return {broadcast(center), broadcast(constants.scale), broadcast(constants.offset)};
}

template <Activation kind, typename T>
void backward_group_nchw(const Shape& shape, const Channels& channels, const T* image, const T* grad, T* dx, int64_t n,
                         int64_t group, const GroupStatistics& statistics, const ChannelSums& result, bool streamed) {
  const GroupConstants constants(statistics);
  const int64_t size = shape.group_channels, row_size = (shape.pixels + STEP - 1) / STEP * STEP;
  float* kept = room_for_d<kind>(size * row_size);
  GroupSums totals;
  for (int64_t j = 0; j < size; ++j) {
    const int64_t c = shape.channel_of(group, j), at = c * shape.pixels;
    const BackwardVectors map = row_vectors(constants.center, backward_constants(channels, c, constants));
    const ChannelTotals sums = sum_row<kind>(image + at, grad + at, shape.pixels, map, kept ? kept + j * row_size : nullptr);
    totals.add<kind>(sums, channels, c, constants, result, n * shape.channels + c);
  }
  const GroupGradient gradient = group_gradient(constants, totals, size * shape.pixels);
  with_stores(streamed, [&](auto streamed) __attribute__((always_inline)) {
    for (int64_t j = 0; j < size; ++j) {
      const int64_t c = shape.channel_of(group, j), at = c * shape.pixels;
      const BackwardConstants map = backward_constants(channels, c, constants);
      const InputGradientVectors vectors = {row_vectors(constants.center, map),
                                            broadcast(map.scale * channels.proxy_inverse_std[c]), broadcast(gradient.tilt),
                                            broadcast(gradient.level)};
      input_gradient_row<kind, streamed()>(image + at, grad + at, dx + at, shape.pixels, vectors,
                                           kept ? kept + j * row_size : nullptr);
    }
  });
}

}  // namespace normact
