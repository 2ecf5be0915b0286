#include "nchw_groups.h"

#include "dispatch.h"

namespace normact {

void forward_nchw(const Shape& shape, const Channels& channels, const Tensors& tensors, Activation activation,
                  Element element, bool have_statistics) {
  with_types(activation, element, [&](auto kind, auto value) {
    using T = decltype(value);
    const int64_t image_size = shape.channels * shape.pixels;
    for_each_unit(shape.images * shape.groups, shape.group_channels * shape.pixels, [&](int64_t unit) {
      const int64_t n = unit / shape.groups, group = unit % shape.groups;
      const T* image = static_cast<const T*>(tensors.x) + n * image_size;
      GroupStatistics& statistics = tensors.statistics[unit];
      if (!have_statistics) statistics = group_statistics_nchw(shape, image, group);
      map_group_nchw<kind()>(shape, channels, image, static_cast<T*>(tensors.out) + n * image_size, group, statistics,
                             tensors.streamed);
    });
  });
}

void backward_nchw(const Shape& shape, const Channels& channels, const Tensors& tensors, Activation activation,
                   Element element, const ChannelSums& sums) {
  with_types(activation, element, [&](auto kind, auto value) {
    using T = decltype(value);
    const int64_t image_size = shape.channels * shape.pixels;
    for_each_unit(shape.images * shape.groups, shape.group_channels * shape.pixels, [&](int64_t unit) {
      const int64_t n = unit / shape.groups, group = unit % shape.groups;
      backward_group_nchw<kind()>(shape, channels, static_cast<const T*>(tensors.x) + n * image_size,
                                  static_cast<const T*>(tensors.grad) + n * image_size,
                                  static_cast<T*>(tensors.out) + n * image_size, n, group, tensors.statistics[unit], sums,
                                  tensors.streamed);
    });
  });
}

namespace {

// The sum of a plane over the images, in their order.
Pair plane_sum(const float* plane, int64_t images, int64_t channels, int live) {
  Pair sum{};
  for (int64_t n = 0; n < images; ++n) {
    sum = both([](Vec s, Vec v) { return s + v; }, sum, load_pair(plane + n * channels, live));
  }
  return sum;
}

}  // namespace

void parameter_gradients(const Shape& shape, const Channels& channels, const ChannelSums& sums, Activation activation,
                         float* gradients) {
  const int64_t size = shape.channels;
  const bool value_sum_follows = activation == Activation::relu || activation == Activation::identity;
  for_each_unit((size + STEP - 1) / STEP, SUM_PLANES * shape.images * STEP, [&](int64_t unit) {
    const int64_t c = unit * STEP;
    const int live = (int)std::min<int64_t>(STEP, size - c);
    const auto row = [&](const float* parameter) { return load_pair(parameter + c, live); };
    const auto total = [&](const float* plane) { return plane_sum(plane + c, shape.images, size, live); };
    const auto write = [&](int64_t k, Pair v) { store_pair(gradients + k * size + c, v, live); };
    const auto product = [](Vec a, Vec b) { return a * b; };
    const Pair r = row(channels.proxy_inverse_std), g = total(sums.g), d = total(sums.d), d_y = total(sums.d_y);
    // phi(z) = phi'(z) z: the sum of g phi(z) = d (gamma y + beta) follows from the others.
    const Pair g_value = value_sum_follows
                             ? both([](Vec gamma, Vec d_y, Vec beta, Vec d) { return gamma * d_y + beta * d; },
                                    row(channels.gamma), d_y, row(channels.beta), d)
                             : total(sums.g_value);
    write(0, both(product, r, d_y));
    write(1, both(product, r, d));
    write(2, both([](Vec r, Vec g) { return -r * g; }, r, g));
    write(3, both([](Vec value, Vec m, Vec g) { return value - m * g; }, g_value, row(channels.proxy_mean), g));
  });
}

}  // namespace normact
