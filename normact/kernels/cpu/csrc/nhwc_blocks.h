// Pixels of all channels, (N, pixels, C), where lanes are channels. The unit of work is a block of whole groups of one image, all
// of them where there are images enough. A bundle of pixels is read together, so that a channel's constants and running sums are
// fetched once a bundle.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "elementwise.h"

namespace normact {

constexpr int64_t FOLD_PIXELS = 256;   // pixels summed in float32 before they go to float64
constexpr int BUNDLE = 8;              // divides FOLD_PIXELS

// A second pass over more than the second-level cache holds asks for the next bundle: worth 14 % of 64x112; on less it costs.
constexpr int64_t SECOND_LEVEL_BYTES = 1 << 20;

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
template <typename Body, typename Fold>
PROXYNORM_INLINE void for_each_bundle(int64_t pixels, Body body, Fold fold) {
  for (int64_t begin = 0; begin < pixels; begin += FOLD_PIXELS) {
    const int64_t end = std::min(begin + FOLD_PIXELS, pixels);
    int64_t p = begin;
    for (; p + BUNDLE <= end; p += BUNDLE) body(p, std::integral_constant<int, BUNDLE>());
    for (; p < end; ++p) body(p, std::integral_constant<int, 1>());
    fold();
  }
}

// The same from the last pixel to the first: what was read last is still in a cache.
template <typename Body>
PROXYNORM_INLINE void for_each_bundle_backwards(int64_t pixels, Body body) {
  int64_t p = pixels;
  for (; p >= BUNDLE; p -= BUNDLE) body(p - BUNDLE, std::integral_constant<int, BUNDLE>());
  for (; p > 0; --p) body(p - 1, std::integral_constant<int, 1>());
}

// Calls body(group) for the groups of a block.
template <typename Body>
PROXYNORM_INLINE void for_each_group(const Shape& shape, const Block& block, Body body) {
  const int64_t first = shape.strided ? 0 : block.begin / shape.group_channels;
  const int64_t end = first + block.width / shape.group_channels;
  for (int64_t group = first; group < end; ++group) body(group);
}

// Calls body(channel, slot) for the channels of a group; T is the type of the pixels.
template <typename T, typename Body>
PROXYNORM_INLINE void for_each_channel(const Shape& shape, int64_t group, const Block& block, Body body) {
  for (int64_t j = 0; j < shape.group_channels; ++j) {
    const int64_t c = shape.channel_of(group, j);
    body(c, slot_of<T>(c - block.begin));
  }
}

}  // namespace normact
