#include "norm_act_nchw.h"

#include "dispatch.h"

namespace proxynorm {

void forward_nchw(const Shape& shape, const Channels& channels, const Tensors& tensors, Activation activation,
                  Element element, bool have_statistics) {
  with_types(activation, element, [&](auto kind, auto value) {
    using T = decltype(value);
    const int64_t image_size = shape.channels * shape.pixels;
    for_each_unit(shape.images * shape.groups, shape.group_channels() * shape.pixels, [&](int64_t unit) {
      const int64_t n = unit / shape.groups, group = unit % shape.groups;
      const T* image = static_cast<const T*>(tensors.x) + n * image_size;
      GroupStatistics& statistics = tensors.statistics[unit];
      if (!have_statistics) statistics = group_statistics_nchw(shape, image, group);
      map_group_nchw<kind()>(shape, channels, image, static_cast<T*>(tensors.out) + n * image_size, group, statistics);
    });
  });
}

void backward_nchw(const Shape& shape, const Channels& channels, const Tensors& tensors, Activation activation,
                   Element element, const PartialGradients& partial) {
  with_types(activation, element, [&](auto kind, auto value) {
    using T = decltype(value);
    const int64_t image_size = shape.channels * shape.pixels;
    for_each_unit(shape.images * shape.groups, shape.group_channels() * shape.pixels, [&](int64_t unit) {
      const int64_t n = unit / shape.groups, group = unit % shape.groups;
      backward_group_nchw<kind()>(shape, channels, static_cast<const T*>(tensors.x) + n * image_size,
                                  static_cast<const T*>(tensors.grad) + n * image_size,
                                  static_cast<T*>(tensors.out) + n * image_size, n, group, tensors.statistics[unit], partial);
    });
  });
}

void sum_over_images(const float* partials, float* totals, int64_t images, int64_t channels) {
  constexpr int64_t block = 2 * STEP;
  const int64_t blocks = (channels + block - 1) / block;
  // One parallel region for all planes: starting threads costs more than the sums of a small layer.
  for_each_unit(GRADIENT_PLANES * blocks, images * block, [&](int64_t unit) {
    const float* plane = partials + unit / blocks * images * channels;
    float* total = totals + unit / blocks * channels;
    const int64_t begin = unit % blocks * block;
    for (int64_t c = begin; c < std::min(channels, begin + block); c += STEP) {
      const int live = (int)std::min<int64_t>(STEP, channels - c);
      Pair sum{};
      for (int64_t n = 0; n < images; ++n) {
        sum = both([](Vec s, Vec v) { return s + v; }, sum, load_pair(plane + n * channels + c, live));
      }
      store_pair(total + c, sum, live);
    }
  });
}

}  // namespace proxynorm
