// Forward for (N, pixels, C): channel sums around a pivot, group moments, and the map.
#pragma once

#include "moments.h"
#include "nhwc_blocks.h"

namespace normact {

constexpr int64_t PIVOT_PIXELS = 16;   // pixels whose mean is the pivot of the shifted sums

namespace moment_rows {
enum : int { pivot, sum, square, total_sum, total_square = total_sum + 2, count = total_square + 2 };
}

template <typename T>
void pivots_nhwc(const T* x, int64_t pixels, int64_t stride, const Block& block, float* pivot) {
  const int64_t samples = std::min(PIVOT_PIXELS, pixels), step = pixels / samples;
  for (int64_t c = 0; c < block.width; c += STEP) {
    const int live = live_elements(c, block.width);
    Pair sum{};
    for (int64_t i = 0; i < samples; ++i) {
      sum = both([](Vec s, Vec v) { return s + v; }, sum, load_pair(x + i * step * stride + c, live));
    }
    store_pair(pivot + c, both([&](Vec s) { return s * (1.0f / (float)samples); }, sum));
  }
}

template <typename T>
void channel_sums_nhwc(const T* x, int64_t pixels, int64_t stride, const Block& block, Workspace& rows) {
  using namespace moment_rows;
  const int64_t padded = block.padded();
  rows.clear(sum, count - sum);
  float *pivots = rows.row(pivot), *sums = rows.row(sum), *squares = rows.row(square);
  pivots_nhwc(x, pixels, stride, block, pivots);
  for_each_bundle(
      pixels,
      [&](int64_t first, auto bundle) __attribute__((always_inline)) {
        for (int64_t i = 0; i < block.width; i += STEP) {
          const int live = live_elements(i, block.width);
          const Pair center = load_pair(pivots + i);
          ShiftedSums s = {load_pair(sums + i), load_pair(squares + i)};
          for (int64_t p = first; p < first + bundle(); ++p) {
            prefetch_for_reading(x + p * stride + i);
            s.add(both([](Vec v, Vec pivot) { return v - pivot; }, load_pair(x + p * stride + i, live), center));
          }
          store_pair(sums + i, s.sum);
          store_pair(squares + i, s.squares);
        }
      },
      [&] {
        fold_row(sums, rows.row_pair(total_sum), padded);
        fold_row(squares, rows.row_pair(total_square), padded);
      });
}

// All channels of a group hold equally many pixels: its mean is the mean of their means, and m2 adds their spread.
template <typename T>
Moments group_moments_nhwc(const Shape& shape, int64_t group, const Block& block, Workspace& rows) {
  const float* pivots = rows.row(moment_rows::pivot);
  const double *sums = rows.row_pair(moment_rows::total_sum), *squares = rows.row_pair(moment_rows::total_square);
  const double per_pixel = 1.0 / (double)shape.pixels;
  double mean = 0, m2 = 0;
  for_each_channel<T>(shape, group, block, [&](int64_t, int64_t i) { mean += pivots[i] + sums[i] * per_pixel; });
  mean /= (double)shape.group_channels;
  for_each_channel<T>(shape, group, block, [&](int64_t, int64_t i) {
    const double rest = sums[i] * per_pixel, apart = pivots[i] + rest - mean;
    m2 += std::max(squares[i] - sums[i] * rest, 0.0) + (double)shape.pixels * apart * apart;
  });
  return {(double)(shape.group_channels * shape.pixels), mean, m2};
}

template <typename T>
void block_statistics_nhwc(const Shape& shape, const T* x, const Block& block, GroupStatistics* statistics,
                           Workspace& rows) {
  rows.resize(moment_rows::count, block.padded());
  channel_sums_nhwc(x, shape.pixels, shape.channels, block, rows);
  for_each_group(shape, block, [&](int64_t group) {
    statistics[group] = group_statistics(group_moments_nhwc<T>(shape, group, block, rows), shape.eps);
  });
}

namespace map_rows {
enum : int { center, scale, offset, gain, shift, count };
}

PROXYNORM_INLINE ForwardVectors forward_vectors_at(Workspace& rows, int64_t i) {
  using namespace map_rows;
  return {load(rows.row(center) + i), load(rows.row(scale) + i), load(rows.row(offset) + i), load(rows.row(gain) + i),
          load(rows.row(shift) + i)};
}

template <Activation kind, typename T>
void map_block_nhwc(const Shape& shape, const Channels& channels, const T* x, T* out, const Block& block,
                    const GroupStatistics* statistics, bool streamed, Workspace& rows) {
  using namespace map_rows;
  rows.resize(count, block.padded());
  float *centers = rows.row(center), *scales = rows.row(scale), *offsets = rows.row(offset), *gains = rows.row(gain),
        *shifts = rows.row(shift);
  for_each_group(shape, block, [&](int64_t group) {
    const GroupConstants constants(statistics[group]);
    for_each_channel<T>(shape, group, block, [&](int64_t c, int64_t i) __attribute__((always_inline)) {
      const ForwardConstants map = forward_constants<kind>(channels, c, constants);
      centers[i] = constants.center;
      scales[i] = map.scale;
      offsets[i] = map.offset;
      gains[i] = map.gain;
      shifts[i] = map.shift;
    });
  });
  const bool is_large = shape.pixels * block.width * (int64_t)sizeof(T) > SECOND_LEVEL_BYTES;
  const int64_t next = -BUNDLE * shape.channels * (int64_t)sizeof(T);
  with_stores(streamed, [&](auto streamed) __attribute__((always_inline)) {
    for_each_bundle_backwards(shape.pixels, [&](int64_t first, auto bundle) __attribute__((always_inline)) {
      for (int64_t i = 0; i < block.width; i += STEP) {
        const int live = live_elements(i, block.width);
        const ForwardVectors a = forward_vectors_at(rows, i), b = forward_vectors_at(rows, i + LANES);
        for (int64_t p = first; p < first + bundle(); ++p) {
          const int64_t at = p * shape.channels + i;
          if (is_large) {
            prefetch_for_reading(x + at, next);
            if (!streamed()) prefetch_for_writing(out + at, next);
          }
          const Pair v = load_pair(x + at, live);
          write_pair<streamed()>(out + at, {mapped<kind, T>(v.a, a), mapped<kind, T>(v.b, b)}, live);
        }
      }
    });
  });
}

}  // namespace normact
