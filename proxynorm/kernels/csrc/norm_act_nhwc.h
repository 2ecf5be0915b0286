// The fused step for (N, pixels, C): lanes are channels. The unit of work is a block of whole groups of one image, narrow enough
// that its second reading comes from a cache. Of narrow pixels a bundle is read together, so that a channel's constants and running
// sums are fetched once a bundle.
#pragma once

#include <vector>

#include "moments.h"

namespace proxynorm {

constexpr int64_t FOLD_PIXELS = 256;     // pixels summed in float32 before they go to float64
// A bundle of wide pixels reads memory in several places at once; one after another is the order a prefetcher expects.
constexpr int64_t BUNDLED_CHANNELS = 64;
constexpr int MOMENT_BUNDLE = 8, MAP_BUNDLE = 4, GRADIENT_BUNDLE = 4;
constexpr int64_t PIVOT_PIXELS = 16;     // pixels whose mean is the pivot of the shifted sums

struct Block {
  int64_t begin, width;   // channels
  int64_t padded() const { return (width + STEP - 1) / STEP * STEP; }
};

// Rows of floats, one float a channel of the block at its slot, padded to whole pairs; kept by the thread between calls.
class Workspace {
 public:
  void resize(int rows, int64_t row_size) {
    row_size_ = row_size;
    if ((int64_t)data_.size() < rows * row_size) data_.resize(rows * row_size);
  }
  float* row(int index) { return data_.data() + index * row_size_; }
  double* row_pair(int index) { return reinterpret_cast<double*>(row(index)); }   // a float64 row takes two
  void clear(int first, int count) { std::fill_n(row(first), count * row_size_, 0.0f); }

 private:
  std::vector<float> data_;
  int64_t row_size_ = 0;
};

PROXYNORM_INLINE int live_elements(int64_t c, int64_t width) { return (int)std::min<int64_t>(STEP, width - c); }


inline void fold_row(float* sums, double* total, int64_t size) {
  for (int64_t c = 0; c < size; ++c) {
    total[c] += sums[c];
    sums[c] = 0;
  }
}

// Calls body(first, count) for bundles of pixels, the last ones singly, and fold() after every FOLD_PIXELS.
template <int bundle, typename Body, typename Fold>
PROXYNORM_INLINE void for_each_bundle(int64_t pixels, int64_t width, Body body, Fold fold) {
  const int64_t reach = width <= BUNDLED_CHANNELS ? bundle : FOLD_PIXELS + 1;
  for (int64_t begin = 0; begin < pixels; begin += FOLD_PIXELS) {
    const int64_t end = std::min(begin + FOLD_PIXELS, pixels);
    int64_t p = begin;
    for (; p + reach <= end; p += bundle) body(p, std::integral_constant<int, bundle>());
    for (; p < end; ++p) body(p, std::integral_constant<int, 1>());
    fold();
  }
}

// ---- forward --------------------------------------------------------------------------------------------------------

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
  for_each_bundle<MOMENT_BUNDLE>(
      pixels, block.width,
      [&](int64_t first, auto bundle) __attribute__((always_inline)) {
        const T* at = x + first * stride;
        for (int64_t c = 0; c < block.width; c += STEP) {
          const int live = live_elements(c, block.width);
          const Pair center = load_pair(pivots + c);
          Pair s = load_pair(sums + c), q = load_pair(squares + c);
          for (int k = 0; k < bundle(); ++k) {
            const Pair t = both([](Vec v, Vec pivot) { return v - pivot; }, load_pair(at + k * stride + c, live), center);
            s = both([](Vec sum, Vec v) { return sum + v; }, s, t);
            q = both([](Vec sum, Vec v) { return sum + v * v; }, q, t);
          }
          store_pair(sums + c, s);
          store_pair(squares + c, q);
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
  const int64_t size = shape.group_channels();
  double mean = 0, m2 = 0;
  for (int64_t j = 0; j < size; ++j) {
    const int64_t c = slot_of<T>(shape.channel_of(group, j) - block.begin);
    mean += pivots[c] + sums[c] * per_pixel;
  }
  mean /= (double)size;
  for (int64_t j = 0; j < size; ++j) {
    const int64_t c = slot_of<T>(shape.channel_of(group, j) - block.begin);
    const double rest = sums[c] * per_pixel, apart = pivots[c] + rest - mean;
    m2 += std::max(squares[c] - sums[c] * rest, 0.0) + (double)shape.pixels * apart * apart;
  }
  return {(double)(size * shape.pixels), mean, m2};
}

namespace map_rows {
enum : int { center, scale, offset, gain, shift, count };
}

template <Activation kind, typename T>
void map_block_nhwc(const Shape& shape, const Channels& channels, const T* x, T* out, const Block& block,
                    const GroupStatistics* statistics, Workspace& rows) {
  using namespace map_rows;
  rows.resize(count, block.padded());
  for (int64_t j = 0; j < block.width; ++j) {
    const int64_t c = block.begin + j, i = slot_of<T>(j);
    const FoldedMap map = folded_map<kind>(channel_map(channels, c, statistics[shape.group_of(c)]));
    rows.row(center)[i] = map.center;
    rows.row(scale)[i] = map.scale;
    rows.row(offset)[i] = map.offset;
    rows.row(gain)[i] = map.gain;
    rows.row(shift)[i] = map.shift;
  }
  const int64_t stride = shape.channels;
  for_each_bundle<MAP_BUNDLE>(
      shape.pixels, block.width,
      [&](int64_t first, auto bundle) __attribute__((always_inline)) {
        for (int64_t i = 0; i < block.width; i += STEP) {
          const int live = live_elements(i, block.width);
          const auto map_at = [&](int64_t at) __attribute__((always_inline)) {
            return FoldedVectors{load(rows.row(center) + at), load(rows.row(scale) + at), load(rows.row(offset) + at),
                                 load(rows.row(gain) + at), load(rows.row(shift) + at)};
          };
          const FoldedVectors map_a = map_at(i), map_b = map_at(i + LANES);
          for (int k = 0; k < bundle(); ++k) {
            const int64_t at = (first + k) * stride + i;
            const Pair v = load_pair(x + at, live);
            store_pair(out + at, {mapped<kind>(v.a, map_a), mapped<kind>(v.b, map_b)}, live);
          }
        }
      },
      [] {});
}

template <typename T>
void block_statistics_nhwc(const Shape& shape, const T* x, const Block& block, GroupStatistics* statistics,
                           Workspace& rows) {
  rows.resize(moment_rows::count, block.padded());
  channel_sums_nhwc(x, shape.pixels, shape.channels, block, rows);
  const int64_t first = shape.strided ? 0 : block.begin / shape.group_channels();
  for (int64_t group = first; group < first + block.width / shape.group_channels(); ++group) {
    statistics[group] = group_statistics(group_moments_nhwc<T>(shape, group, block, rows), shape.eps);
  }
}

// ---- backward -------------------------------------------------------------------------------------------------------

namespace gradient_rows {
enum : int {
  center, scale, offset, slope, tilt, level,
  g, g_value, d, d_t,
  total_g, total_g_value = total_g + 2, total_d = total_g_value + 2, total_d_t = total_d + 2, count = total_d_t + 2
};
}

template <Activation kind, typename T>
void gradient_sums_nhwc(const T* x, const T* grad, int64_t pixels, int64_t stride, const Block& block, Workspace& rows) {
  using namespace gradient_rows;
  const int64_t padded = block.padded();
  rows.clear(g, count - g);
  float *g_row = rows.row(g), *g_value_row = rows.row(g_value), *d_row = rows.row(d), *d_t_row = rows.row(d_t);
  for_each_bundle<GRADIENT_BUNDLE>(
      pixels, block.width,
      [&](int64_t first, auto bundle) __attribute__((always_inline)) {
        for (int64_t i = 0; i < block.width; i += STEP) {
          const int live = live_elements(i, block.width);
          const Pair middle = load_pair(rows.row(center) + i), factor = load_pair(rows.row(scale) + i),
                     addend = load_pair(rows.row(offset) + i);
          LaneSums a = {load(g_row + i), {}, load(d_row + i), load(d_t_row + i)};
          LaneSums b = {load(g_row + i + LANES), {}, load(d_row + i + LANES), load(d_t_row + i + LANES)};
          if constexpr (!value_sum_follows<kind>) {
            a.g_value = load(g_value_row + i);
            b.g_value = load(g_value_row + i + LANES);
          }
          for (int k = 0; k < bundle(); ++k) {
            const int64_t at = (first + k) * stride + i;
            const Pair gradient = load_pair(grad + at, live), v = load_pair(x + at, live);
            accumulate<kind>(a, gradient.a, v.a - middle.a, factor.a, addend.a);
            accumulate<kind>(b, gradient.b, v.b - middle.b, factor.b, addend.b);
          }
          store_pair(g_row + i, {a.g, b.g});
          store_pair(d_row + i, {a.d, b.d});
          store_pair(d_t_row + i, {a.d_t, b.d_t});
          if constexpr (!value_sum_follows<kind>) store_pair(g_value_row + i, {a.g_value, b.g_value});
        }
      },
      [&] {
        fold_row(g_row, rows.row_pair(total_g), padded);
        fold_row(d_row, rows.row_pair(total_d), padded);
        fold_row(d_t_row, rows.row_pair(total_d_t), padded);
        if constexpr (!value_sum_follows<kind>) fold_row(g_value_row, rows.row_pair(total_g_value), padded);
      });
}

// Turns the sums of a block into parameter gradients and the rows of the second pass.
template <Activation kind, typename T>
void finish_block_sums_nhwc(const Shape& shape, const Channels& channels, int64_t n, const Block& block,
                            const GroupStatistics* statistics, const PartialGradients& partial, Workspace& rows) {
  using namespace gradient_rows;
  const int64_t first = shape.strided ? 0 : block.begin / shape.group_channels();
  const double per_element = 1.0 / (double)(shape.group_channels() * shape.pixels);
  for (int64_t group = first; group < first + block.width / shape.group_channels(); ++group) {
    double sum_h = 0, sum_h_y = 0;
    for (int64_t j = 0; j < shape.group_channels(); ++j) {
      const int64_t c = shape.channel_of(group, j), i = slot_of<T>(c - block.begin);
      const ChannelMap map = channel_map(channels, c, statistics[group]);
      GradientSums sums = {rows.row_pair(total_g)[i], rows.row_pair(total_g_value)[i], rows.row_pair(total_d)[i],
                           rows.row_pair(total_d_t)[i]};
      finish_sums<kind>(sums, map);
      channel_gradients(sums, map, channels.gamma[c], statistics[group], n * shape.channels + c, partial, sum_h, sum_h_y);
    }
    const GroupGradient gradient = group_gradient(statistics[group], sum_h * per_element, sum_h_y * per_element);
    for (int64_t j = 0; j < shape.group_channels(); ++j) {
      const int64_t c = shape.channel_of(group, j), i = slot_of<T>(c - block.begin);
      rows.row(slope)[i] = (float)(statistics[group].rstd * channels.gamma[c] * channels.proxy_inverse_std[c]);
      rows.row(tilt)[i] = gradient.tilt;
      rows.row(level)[i] = gradient.level;
    }
  }
}

template <Activation kind, typename T>
void input_gradient_nhwc(const T* x, const T* grad, T* dx, int64_t pixels, int64_t stride, const Block& block, Workspace& rows) {
  using namespace gradient_rows;
  for_each_bundle<MAP_BUNDLE>(
      pixels, block.width,
      [&](int64_t first, auto bundle) __attribute__((always_inline)) {
        for (int64_t i = 0; i < block.width; i += STEP) {
          const int live = live_elements(i, block.width);
          const auto constants_at = [&](int64_t at) __attribute__((always_inline)) {
            return InputGradientVectors{load(rows.row(center) + at), load(rows.row(scale) + at), load(rows.row(offset) + at),
                                        load(rows.row(slope) + at), load(rows.row(tilt) + at), load(rows.row(level) + at)};
          };
          const InputGradientVectors a = constants_at(i), b = constants_at(i + LANES);
          for (int k = 0; k < bundle(); ++k) {
            const int64_t at = (first + k) * stride + i;
            const Pair v = load_pair(x + at, live), g = load_pair(grad + at, live);
            store_pair(dx + at, {input_gradient<kind>(v.a, g.a, a), input_gradient<kind>(v.b, g.b, b)}, live);
          }
        }
      },
      [] {});
}

template <Activation kind, typename T>
void backward_block_nhwc(const Shape& shape, const Channels& channels, const T* x, const T* grad, T* dx, int64_t n,
                         const Block& block, const GroupStatistics* statistics, const PartialGradients& partial, Workspace& rows) {
  using namespace gradient_rows;
  rows.resize(count, block.padded());
  for (int64_t j = 0; j < block.width; ++j) {
    const int64_t c = block.begin + j, i = slot_of<T>(j);
    const ChannelMap map = channel_map(channels, c, statistics[shape.group_of(c)]);
    rows.row(center)[i] = map.center;
    rows.row(scale)[i] = map.scale;
    rows.row(offset)[i] = map.offset;
  }
  gradient_sums_nhwc<kind>(x, grad, shape.pixels, shape.channels, block, rows);
  finish_block_sums_nhwc<kind, T>(shape, channels, n, block, statistics, partial, rows);
  input_gradient_nhwc<kind>(x, grad, dx, shape.pixels, shape.channels, block, rows);
}

}  // namespace proxynorm
