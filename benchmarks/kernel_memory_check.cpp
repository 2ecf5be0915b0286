// Runs every kernel on buffers of exact size, to be compiled with AddressSanitizer (the command is in NOTES.md).
#include <cstdio>
#include <vector>

#include "../normact/kernels/cpu/csrc/norm_act.h"

using namespace normact;

static void run(const Shape& shape, Activation activation, Element element, bool nhwc) {
  const size_t size = shape.images * shape.channels * shape.pixels * (element == Element::float32 ? 4 : 2);
  std::vector<char> x(size, 1), grad(size, 2), out(size), dx(size);
  std::vector<GroupStatistics> statistics(shape.images * shape.groups);
  std::vector<float> row(shape.channels, 0.5f), totals(4 * shape.channels), slopes(4 * shape.channels);
  const size_t plane = shape.images * shape.channels;
  std::vector<float> planes(SUM_PLANES * plane), mean(shape.channels), inverse_std(shape.channels);
  const Channels channels = {row.data(), row.data(), row.data(), row.data()};
  const ChannelSums sums = {&planes[0], &planes[plane], &planes[2 * plane], &planes[3 * plane]};
  const Tensors forward = {x.data(), nullptr, out.data(), statistics.data()};
  const Tensors backward = {x.data(), grad.data(), dx.data(), statistics.data()};
  (nhwc ? forward_nhwc : forward_nchw)(shape, channels, forward, activation, element, false);
  (nhwc ? forward_nhwc : forward_nchw)(shape, channels, forward, activation, element, true);
  (nhwc ? backward_nhwc : backward_nchw)(shape, channels, backward, activation, element, sums);
  parameter_gradients(shape, channels, sums, activation, totals.data());
  const ProxyParameters parameters = {row.data(), row.data(), row.data(), row.data()};
  proxy_statistics(parameters, shape.channels, activation, 0.03f, mean.data(), inverse_std.data(), slopes.data());
  proxy_statistics_backward(parameters, shape.channels, mean.data(), inverse_std.data(), slopes.data(), totals.data());
}

int main() {
  int runs = 0;
  for (const Activation activation : {Activation::identity, Activation::relu, Activation::silu, Activation::gelu}) {
    for (const Element element : {Element::float32, Element::bfloat16}) {
      for (const bool nhwc : {false, true}) {
        for (const bool strided : {false, true}) {
          for (const Shape& shape : {Shape(1, 1, 1, 1, strided, 1e-5), Shape(3, 6, 49, 2, strided, 1e-5),
                                     Shape(2, 40, 17, 5, strided, 1e-5), Shape(1, 96, 300, 3, strided, 1e-5),
                                     Shape(2, 2, 9001, 1, strided, 1e-5), Shape(5, 130, 1, 13, strided, 1e-5)}) {
            run(shape, activation, element, nhwc);
            ++runs;
          }
        }
      }
    }
  }
  std::printf("%d runs without a fault\n", runs);
}
