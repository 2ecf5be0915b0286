// The entry points the operators call; one translation unit each, so that they compile side by side.
#pragma once

#include "problem.h"

namespace normact {

enum class Layout { nchw, nhwc };
enum class Element { float32, bfloat16 };

struct Tensors {
  const void* x;
  const void* grad;             // backward only
  void* out;                    // the output, or the gradient of x
  GroupStatistics* statistics;  // images x groups
  bool streamed = false;        // whether `out` is written past the caches; the values are the same
};

// have_statistics: use the saved ones (the map alone) instead of measuring.
void forward_nchw(const Shape&, const Channels&, const Tensors&, Activation, Element, bool have_statistics);
void forward_nhwc(const Shape&, const Channels&, const Tensors&, Activation, Element, bool have_statistics);
void backward_nchw(const Shape&, const Channels&, const Tensors&, Activation, Element, const ChannelSums&);
void backward_nhwc(const Shape&, const Channels&, const Tensors&, Activation, Element, const ChannelSums&);

// Gradients of gamma, beta, proxy mean and proxy 1/std as rows of `channels` floats, from the sums of each image.
constexpr int64_t SUM_PLANES = 4;
void parameter_gradients(const Shape&, const Channels&, const ChannelSums&, Activation, float* gradients);

// Per channel constants of PN, and their slopes: four rows of `channels` floats,
// d mean / d m, d mean / d s, d inverse_std / d m, d inverse_std / d s of the proxy N(m, s^2).
struct ProxyParameters {
  const float *gamma, *beta, *proxy_beta, *proxy_gamma;
};
void proxy_statistics(const ProxyParameters&, int64_t channels, Activation, float eps, float* mean, float* inverse_std,
                      float* slopes);

// Gradients of gamma, beta, proxy_beta, proxy_gamma as four rows, from those of mean and inverse_std through m and s alone.
void proxy_statistics_backward(const ProxyParameters&, int64_t channels, const float* grad_mean, const float* grad_inverse_std,
                               const float* slopes, float* gradients);

}  // namespace normact
