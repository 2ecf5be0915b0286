#include "dispatch.h"
#include "nhwc_backward.h"
#include "nhwc_forward.h"

namespace normact {

namespace {

constexpr int64_t NARROWEST_BLOCK = 64;

// All channels: a narrower block reads memory with a large power-of-two stride, which falls into few sets of
// a cache. Only where there are fewer images than threads, blocks of whole groups.
int64_t block_width(const Shape& shape) {
  if (shape.strided || shape.images >= number_of_threads()) return shape.channels;
  int64_t width = shape.group_channels;
  while (width < shape.channels && (width < NARROWEST_BLOCK || width % STEP != 0)) width += shape.group_channels;
  return width;
}

template <typename Body>
void for_each_block(const Shape& shape, Body body) {
  const int64_t width = block_width(shape), blocks = (shape.channels + width - 1) / width;
  for_each_unit(shape.images * blocks, width * shape.pixels, [&](int64_t unit) {
    const int64_t begin = unit % blocks * width;
    thread_local Workspace rows;
    body(unit / blocks, Block{begin, std::min(width, shape.channels - begin)}, rows);
  });
}

}  // namespace

void forward_nhwc(const Shape& shape, const Channels& channels, const Tensors& tensors, Activation activation,
                  Element element, bool have_statistics) {
  with_types(activation, element, [&](auto kind, auto value) {
    using T = decltype(value);
    for_each_block(shape, [&](int64_t n, const Block& block, Workspace& rows) {
      const int64_t at = n * shape.channels * shape.pixels + block.begin;
      const T* x = static_cast<const T*>(tensors.x) + at;
      GroupStatistics* statistics = tensors.statistics + n * shape.groups;
      if (!have_statistics) block_statistics_nhwc(shape, x, block, statistics, rows);
      map_block_nhwc<kind()>(shape, channels, x, static_cast<T*>(tensors.out) + at, block, statistics, tensors.streamed, rows);
    });
  });
}

void backward_nhwc(const Shape& shape, const Channels& channels, const Tensors& tensors, Activation activation,
                   Element element, const ChannelSums& sums) {
  with_types(activation, element, [&](auto kind, auto value) {
    using T = decltype(value);
    for_each_block(shape, [&](int64_t n, const Block& block, Workspace& rows) {
      const int64_t at = n * shape.channels * shape.pixels + block.begin;
      backward_block_nhwc<kind()>(shape, channels, static_cast<const T*>(tensors.x) + at,
                                  static_cast<const T*>(tensors.grad) + at, static_cast<T*>(tensors.out) + at, n, block,
                                  tensors.statistics + n * shape.groups, sums, tensors.streamed, rows);
    });
  });
}

}  // namespace normact
