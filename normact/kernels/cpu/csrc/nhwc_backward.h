// Backward for (N, pixels, C): sums per channel, the group's two means, and the input's gradient.
#pragma once

#include "kept.h"
#include "nhwc_blocks.h"

namespace normact {

namespace gradient_rows {
enum : int {
  center, scale, offset, slope, tilt, level,
  g, g_value, d, d_t,
  total_g, total_g_value = total_g + 2, total_d = total_g_value + 2, total_d_t = total_d + 2, count = total_d_t + 2
};
}

PROXYNORM_INLINE BackwardVectors backward_vectors_at(Workspace& rows, int64_t i) {
  using namespace gradient_rows;
  return {load(rows.row(center) + i), load(rows.row(scale) + i), load(rows.row(offset) + i)};
}

template <Activation kind>
PROXYNORM_INLINE LaneSums load_sums(Workspace& rows, int64_t i) {
  using namespace gradient_rows;
  LaneSums sums = {load(rows.row(g) + i), Vec{}, load(rows.row(d) + i), load(rows.row(d_t) + i)};
  if constexpr (!is_piecewise_linear<kind>) sums.g_value = load(rows.row(g_value) + i);
  return sums;
}

template <Activation kind>
PROXYNORM_INLINE void store_sums(const LaneSums& sums, Workspace& rows, int64_t i) {
  using namespace gradient_rows;
  store(rows.row(g) + i, sums.g);
  store(rows.row(d) + i, sums.d);
  store(rows.row(d_t) + i, sums.d_t);
  if constexpr (!is_piecewise_linear<kind>) store(rows.row(g_value) + i, sums.g_value);
}

// `kept`, if not null, receives d: pixels of block.padded() floats.
template <Activation kind, typename T>
void gradient_sums_nhwc(const T* x, const T* grad, int64_t pixels, int64_t stride, const Block& block, Workspace& rows,
                        float* kept) {
  using namespace gradient_rows;
  const int64_t padded = block.padded();
  rows.clear(g, count - g);
  for_each_bundle(
      pixels,
      [&](int64_t first, auto bundle) __attribute__((always_inline)) {
        for (int64_t i = 0; i < block.width; i += STEP) {
          const int live = live_elements(i, block.width);
          const BackwardVectors map_a = backward_vectors_at(rows, i), map_b = backward_vectors_at(rows, i + LANES);
          LaneSums a = load_sums<kind>(rows, i), b = load_sums<kind>(rows, i + LANES);
          for (int64_t p = first; p < first + bundle(); ++p) {
            const int64_t at = p * stride + i;
            prefetch_for_reading(grad + at);
            prefetch_for_reading(x + at);
            const Pair gradient = load_pair(grad + at, live), v = load_pair(x + at, live);
            const Pair d = {accumulate<kind, T>(a, v.a, gradient.a, map_a), accumulate<kind, T>(b, v.b, gradient.b, map_b)};
            if (kept) store_pair(kept + p * padded + i, d);
          }
          store_sums<kind>(a, rows, i);
          store_sums<kind>(b, rows, i + LANES);
        }
      },
      [&] {
        fold_row(rows.row(g), rows.row_pair(total_g), padded);
        fold_row(rows.row(d), rows.row_pair(total_d), padded);
        fold_row(rows.row(d_t), rows.row_pair(total_d_t), padded);
        if constexpr (!is_piecewise_linear<kind>) fold_row(rows.row(g_value), rows.row_pair(total_g_value), padded);
      });
}

// Turns the sums of a block into the image's sums per channel and the rows of the second pass.
template <Activation kind, typename T>
void finish_sums_nhwc(const Shape& shape, const Channels& channels, int64_t n, const Block& block,
                      const GroupStatistics* statistics, const ChannelSums& result, Workspace& rows) {
  using namespace gradient_rows;
  const double *gs = rows.row_pair(total_g), *g_values = rows.row_pair(total_g_value), *ds = rows.row_pair(total_d),
               *d_ts = rows.row_pair(total_d_t);
  const float* scales = rows.row(scale);
  float *slopes = rows.row(slope), *tilts = rows.row(tilt), *levels = rows.row(level);
  for_each_group(shape, block, [&](int64_t group) {
    const GroupConstants constants(statistics[group]);
    GroupSums totals;
    for_each_channel<T>(shape, group, block, [&](int64_t c, int64_t i) __attribute__((always_inline)) {
      totals.add<kind>({gs[i], g_values[i], ds[i], d_ts[i]}, channels, c, constants, result, n * shape.channels + c);
    });
    const GroupGradient gradient = group_gradient(constants, totals, shape.group_channels * shape.pixels);
    for_each_channel<T>(shape, group, block, [&](int64_t c, int64_t i) __attribute__((always_inline)) {
      slopes[i] = scales[i] * channels.proxy_inverse_std[c];
      tilts[i] = gradient.tilt;
      levels[i] = gradient.level;
    });
  });
}

PROXYNORM_INLINE InputGradientVectors input_gradient_vectors_at(Workspace& rows, int64_t i) {
  using namespace gradient_rows;
  return {backward_vectors_at(rows, i), load(rows.row(slope) + i), load(rows.row(tilt) + i), load(rows.row(level) + i)};
}

template <Activation kind, typename T>
void input_gradient_nhwc(const T* x, const T* grad, T* dx, int64_t pixels, int64_t stride, const Block& block, Workspace& rows,
                         const float* kept, bool streamed) {
  const int64_t padded = block.padded(), next = -BUNDLE * stride * (int64_t)sizeof(T);
  const bool is_large = pixels * block.width * (int64_t)sizeof(T) > SECOND_LEVEL_BYTES;
  with_stores(streamed, [&](auto streamed) __attribute__((always_inline)) {
    for_each_bundle_backwards(pixels, [&](int64_t first, auto bundle) __attribute__((always_inline)) {
      for (int64_t i = 0; i < block.width; i += STEP) {
        const int live = live_elements(i, block.width);
        const InputGradientVectors a = input_gradient_vectors_at(rows, i), b = input_gradient_vectors_at(rows, i + LANES);
        for (int64_t p = first; p < first + bundle(); ++p) {
          const int64_t at = p * stride + i;
          if (is_large) {
            prefetch_for_reading(x + at, next);
            if (!streamed()) prefetch_for_writing(dx + at, next);
          }
          const Pair v = load_pair(x + at, live);
          Pair d;
          if (kept) {
            if (is_large) prefetch_for_reading(kept + p * padded + i, -BUNDLE * padded * (int64_t)sizeof(float));
            d = load_pair(kept + p * padded + i);
          } else {
            if (is_large) prefetch_for_reading(grad + at, next);
            const Pair g = load_pair(grad + at, live);
            d = {gradient_of_z<kind, T>(v.a, g.a, a.map), gradient_of_z<kind, T>(v.b, g.b, b.map)};
          }
          write_pair<streamed()>(dx + at, {input_gradient(v.a, d.a, a), input_gradient(v.b, d.b, b)}, live);
        }
      }
    });
  });
}

template <Activation kind, typename T>
void backward_block_nhwc(const Shape& shape, const Channels& channels, const T* x, const T* grad, T* dx, int64_t n,
                         const Block& block, const GroupStatistics* statistics, const ChannelSums& result, bool streamed,
                         Workspace& rows) {
  using namespace gradient_rows;
  rows.resize(count, block.padded());
  float *centers = rows.row(center), *scales = rows.row(scale), *offsets = rows.row(offset);
  for_each_group(shape, block, [&](int64_t group) {
    const GroupConstants constants(statistics[group]);
    for_each_channel<T>(shape, group, block, [&](int64_t c, int64_t i) __attribute__((always_inline)) {
      const BackwardConstants map = backward_constants(channels, c, constants);
      centers[i] = constants.center;
      scales[i] = map.scale;
      offsets[i] = map.offset;
    });
  });
  float* kept = room_for_d<kind>(shape.pixels * block.padded());
  gradient_sums_nhwc<kind>(x, grad, shape.pixels, shape.channels, block, rows, kept);
  finish_sums_nhwc<kind, T>(shape, channels, n, block, statistics, result, rows);
  input_gradient_nhwc<kind>(x, grad, dx, shape.pixels, shape.channels, block, rows, kept, streamed);
}

}  // namespace normact
