// The operators' CPU implementations: tensors checked and unwrapped here, arithmetic in the files beside this one.
#include <algorithm>
#include <atomic>
#include <sstream>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "norm_act.h"
#include "operators.h"
#include "tensors.h"

namespace {

using normact::Activation;
using normact::dense;
using normact::converted;
using normact::empty;
using normact::MemoryFormat;
using normact::OptionalTensor;
using normact::ScalarType;
using normact::Tensor;
using normact::Text;

// Torch makes it a RuntimeError of these words.
template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream words;
  (words << ... << parts);
  throw std::runtime_error(words.str());
}

Activation activation_named(Text name) {
  if (name == "identity") return Activation::identity;
  if (name == "relu") return Activation::relu;
  if (name == "silu") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  refuse("activation '", name, "' has no fused form; use identity, relu, silu or gelu");
}

// The layout a kernel reads. One pixel an image is the same memory in both; then lanes must be channels.
struct Arranged {
  MemoryFormat format;
  normact::Layout layout;
};

// As torch decides it: the dims from the innermost, those of one element apart.
bool is_channels_last(const Tensor& x) {
  int64_t stride = 1;
  const auto follows = [&](int64_t dim) {
    if (x.size(dim) == 1) return true;
    const bool is_next = x.stride(dim) == stride;
    stride *= x.size(dim);
    return is_next;
  };
  if (!follows(1)) return false;
  for (int64_t dim = x.dim() - 1; dim >= 2; --dim) {
    if (!follows(dim)) return false;
  }
  return follows(0);
}

Arranged arrangement_of(const Tensor& x) {
  const bool one_pixel = x.numel() == x.size(0) * x.size(1);
  if ((x.dim() == 4 || x.dim() == 5) && !x.is_contiguous() && is_channels_last(x)) {
    return {x.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d, normact::Layout::nhwc};
  }
  return {MemoryFormat::Contiguous, one_pixel ? normact::Layout::nhwc : normact::Layout::nchw};
}

normact::Element element_of(const Tensor& x) {
  if (x.scalar_type() == ScalarType::Float) return normact::Element::float32;
  if (x.scalar_type() == ScalarType::BFloat16) return normact::Element::bfloat16;
  refuse("x is ", x.scalar_type(), "; the fused form computes float32 and bfloat16");
}

normact::Shape shape_of(const Tensor& x, int64_t num_groups, bool strided, double eps) {
  if (x.dim() < 2 || x.dim() > 5) refuse("x has ", x.dim(), " dimensions; (N, C, *spatial) with 2 to 5 is needed");
  if (num_groups < 1 || x.size(1) % num_groups != 0) {
    refuse("num_groups ", num_groups, " does not divide the ", x.size(1), " channels");
  }
  const int64_t images = x.size(0), channels = x.size(1);
  const int64_t pixels = images * channels != 0 ? x.numel() / (images * channels) : 0;
  return normact::Shape(images, channels, pixels, num_groups, strided, eps);
}

// Outputs of at least so many bytes are written past the caches. normact/kernels/cpu/streaming.py decides.
std::atomic<int64_t> stream_from{INT64_MAX};

// Rows of whole cache lines alone: a line that is written in both ways costs more than either.
bool is_streamed(const Tensor& out, normact::Layout layout, const normact::Shape& shape) {
  const int64_t element_bytes = element_of(out) == normact::Element::float32 ? 4 : 2;
  const int64_t row = layout == normact::Layout::nchw ? shape.pixels : shape.channels;
  return row * element_bytes % 64 == 0 && out.numel() * element_bytes >= stream_from.load(std::memory_order_relaxed);
}

// Per channel parameters as float32 rows; an absent one is its neutral value. One small allocation instead of four tensors.
class ChannelRows {
 public:
  ChannelRows(int64_t channels, std::initializer_list<std::pair<const OptionalTensor*, float>> parameters) : channels_(channels) {
    rows_.reserve(parameters.size() * channels);
    for (const auto& [parameter, neutral] : parameters) append(*parameter, neutral);
  }
  int64_t channels() const { return channels_; }
  const float* operator[](int64_t row) const { return rows_.data() + row * channels_; }

 private:
  void append(const OptionalTensor& parameter, float neutral) {
    if (!parameter.has_value()) {
      rows_.resize(rows_.size() + channels_, neutral);
      return;
    }
    if (parameter->dim() != 1 || parameter->size(0) != channels_) {
      refuse("a per-channel parameter has ", parameter->numel(), " values in ", parameter->dim(), " dimensions; (", channels_,
             ",) is needed");
    }
    const Tensor row = dense(converted(*parameter, ScalarType::Float));
    rows_.insert(rows_.end(), row.const_data_ptr<float>(), row.const_data_ptr<float>() + channels_);
  }

  int64_t channels_;
  std::vector<float> rows_;
};

ChannelRows rows_of(int64_t channels, const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& proxy_mean,
                    const OptionalTensor& proxy_inverse_std) {
  return ChannelRows(channels, {{&weight, 1.0f}, {&bias, 0.0f}, {&proxy_mean, 0.0f}, {&proxy_inverse_std, 1.0f}});
}

normact::Channels channels_of(const ChannelRows& rows) { return {rows[0], rows[1], rows[2], rows[3]}; }

normact::GroupStatistics* statistics_data(const Tensor& statistics) {
  return reinterpret_cast<normact::GroupStatistics*>(statistics.mutable_data_ptr<double>());
}

Tensor map_forward(const Tensor& x, const Tensor& statistics, const normact::Shape& shape, const ChannelRows& rows,
                   Text activation, bool have_statistics) {
  const Arranged arranged = arrangement_of(x);
  const Tensor input = dense(x, arranged.format);
  Tensor out = empty(x.sizes(), x.scalar_type(), arranged.format);
  if (input.numel() == 0) return out;
  const auto forward = arranged.layout == normact::Layout::nchw ? normact::forward_nchw : normact::forward_nhwc;
  forward(shape, channels_of(rows), {input.const_data_ptr(), nullptr, out.mutable_data_ptr(), statistics_data(statistics),
           is_streamed(out, arranged.layout, shape)},
          activation_named(activation), element_of(input), have_statistics);
  return out;
}

std::tuple<Tensor, Tensor> norm_act(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                                    const OptionalTensor& proxy_mean, const OptionalTensor& proxy_inverse_std,
                                    int64_t num_groups, bool strided, Text activation, double eps) {
  const normact::Shape shape = shape_of(x, num_groups, strided, eps);
  const Tensor statistics = empty({shape.images, num_groups, 2}, ScalarType::Double);
  const ChannelRows rows = rows_of(shape.channels, weight, bias, proxy_mean, proxy_inverse_std);
  return {map_forward(x, statistics, shape, rows, activation, false), statistics};
}

Tensor norm_act_again(const Tensor& x, const Tensor& statistics, const OptionalTensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& proxy_mean, const OptionalTensor& proxy_inverse_std, int64_t num_groups,
                      bool strided, Text activation) {
  const normact::Shape shape = shape_of(x, num_groups, strided, 0.0);
  const ChannelRows rows = rows_of(shape.channels, weight, bias, proxy_mean, proxy_inverse_std);
  return map_forward(x, dense(statistics), shape, rows, activation, true);
}

std::tuple<Tensor, Tensor> norm_act_backward(const Tensor& grad, const Tensor& x, const Tensor& statistics,
                                             const OptionalTensor& weight, const OptionalTensor& bias,
                                             const OptionalTensor& proxy_mean, const OptionalTensor& proxy_inverse_std,
                                             int64_t num_groups, bool strided, Text activation) {
  return normact::norm_act_gradients(grad, x, statistics, weight, bias, proxy_mean, proxy_inverse_std, num_groups, strided,
                                     activation, /*overwrite=*/false);
}

// Rows gamma, beta, proxy_beta, proxy_gamma.
ChannelRows proxy_rows(const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& proxy_beta,
                       const OptionalTensor& proxy_gamma) {
  for (const OptionalTensor* given : {&weight, &bias, &proxy_beta, &proxy_gamma}) {
    if (given->has_value()) {
      return ChannelRows((*given)->numel(), {{&weight, 1.0f}, {&bias, 0.0f}, {&proxy_beta, 0.0f}, {&proxy_gamma, 0.0f}});
    }
  }
  refuse("proxy statistics of no parameters: give at least one of weight, bias, proxy_beta and proxy_gamma");
}

std::tuple<Tensor, Tensor, Tensor> proxy_statistics(Text activation, const OptionalTensor& weight,
                                                    const OptionalTensor& bias, const OptionalTensor& proxy_beta,
                                                    const OptionalTensor& proxy_gamma, double eps) {
  const ChannelRows rows = proxy_rows(weight, bias, proxy_beta, proxy_gamma);
  Tensor mean = empty({rows.channels()}, ScalarType::Float), inverse_std = empty({rows.channels()}, ScalarType::Float);
  Tensor slopes = empty({4, rows.channels()}, ScalarType::Float);
  normact::proxy_statistics({rows[0], rows[1], rows[2], rows[3]}, rows.channels(), activation_named(activation), (float)eps,
                              mean.mutable_data_ptr<float>(), inverse_std.mutable_data_ptr<float>(),
                              slopes.mutable_data_ptr<float>());
  return {mean, inverse_std, slopes};
}

Tensor proxy_statistics_backward(const OptionalTensor& grad_mean, const OptionalTensor& grad_inverse_std, const Tensor& slopes,
                                 const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& proxy_beta,
                                 const OptionalTensor& proxy_gamma) {
  const ChannelRows rows = proxy_rows(weight, bias, proxy_beta, proxy_gamma);
  const ChannelRows gradients(rows.channels(), {{&grad_mean, 0.0f}, {&grad_inverse_std, 0.0f}});
  const Tensor slope = dense(slopes);
  Tensor out = empty({4, rows.channels()}, ScalarType::Float);
  normact::proxy_statistics_backward({rows[0], rows[1], rows[2], rows[3]}, rows.channels(), gradients[0], gradients[1],
                                       slope.const_data_ptr<float>(), out.mutable_data_ptr<float>());
  return out;
}

}  // namespace

std::tuple<Tensor, Tensor> normact::norm_act_gradients(const Tensor& grad, const Tensor& x, const Tensor& statistics,
                                                       const OptionalTensor& weight, const OptionalTensor& bias,
                                                       const OptionalTensor& proxy_mean, const OptionalTensor& proxy_inverse_std,
                                                       int64_t num_groups, bool strided, Text activation, bool overwrite) {
  const normact::Shape shape = shape_of(x, num_groups, strided, 0.0);
  const Arranged arranged = arrangement_of(x);
  const Tensor input = dense(x, arranged.format), gradient = dense(converted(grad, x.scalar_type()), arranged.format);
  // A converted gradient is nobody else's. The kernels read each element of it for the last time before they write its dx.
  const bool in_place = overwrite || gradient.const_data_ptr() != grad.const_data_ptr();
  Tensor dx = in_place ? gradient : empty(x.sizes(), x.scalar_type(), arranged.format);
  Tensor parameters = empty({4, shape.channels}, ScalarType::Float);
  if (input.numel() == 0) {
    std::fill_n(parameters.mutable_data_ptr<float>(), parameters.numel(), 0.0f);
    return {dx, parameters};
  }

  const ChannelRows rows = rows_of(shape.channels, weight, bias, proxy_mean, proxy_inverse_std);
  const Tensor planes = empty({normact::SUM_PLANES, shape.images, shape.channels}, ScalarType::Float);
  const auto plane = [&](int64_t k) { return planes.mutable_data_ptr<float>() + k * shape.images * shape.channels; };
  const normact::ChannelSums sums = {plane(0), plane(1), plane(2), plane(3)};
  const auto backward = arranged.layout == normact::Layout::nchw ? normact::backward_nchw : normact::backward_nhwc;
  const Activation kind = activation_named(activation);
  // What the second pass has just read is in the caches already.
  const bool is_cached = in_place && (kind == Activation::identity || kind == Activation::relu);
  void* out = dx.mutable_data_ptr();  // before the gradient's: asking for it may move a copy-on-write tensor
  backward(shape, channels_of(rows),
           {input.const_data_ptr(), gradient.const_data_ptr(), out, statistics_data(dense(statistics)),
            !is_cached && is_streamed(dx, arranged.layout, shape)},
           kind, element_of(input), sums);

  parameter_gradients(shape, channels_of(rows), sums, kind, parameters.mutable_data_ptr<float>());
  return {dx, parameters};
}

extern "C" __attribute__((visibility("default"))) void normact_stream_from(int64_t bytes) { stream_from = bytes; }

NORMACT_OPERATORS(m) {
  m.def("norm_act(Tensor x, Tensor? weight, Tensor? bias, Tensor? proxy_mean, Tensor? proxy_inverse_std, int num_groups, "
        "bool strided, str activation, float eps) -> (Tensor out, Tensor statistics)");
  m.def("norm_act_again(Tensor x, Tensor statistics, Tensor? weight, Tensor? bias, Tensor? proxy_mean, "
        "Tensor? proxy_inverse_std, int num_groups, bool strided, str activation) -> Tensor");
  // The second result holds the gradients of weight, bias, proxy_mean and proxy_inverse_std as rows of float32.
  m.def("norm_act_backward(Tensor grad, Tensor x, Tensor statistics, Tensor? weight, Tensor? bias, Tensor? proxy_mean, "
        "Tensor? proxy_inverse_std, int num_groups, bool strided, str activation) -> (Tensor dx, Tensor parameters)");
  m.def("proxy_statistics(str activation, Tensor? weight, Tensor? bias, Tensor? proxy_beta, Tensor? proxy_gamma, "
        "float eps) -> (Tensor mean, Tensor inverse_std, Tensor slopes)");
  m.def("proxy_statistics_backward(Tensor? grad_mean, Tensor? grad_inverse_std, Tensor slopes, Tensor? weight, Tensor? bias, "
        "Tensor? proxy_beta, Tensor? proxy_gamma) -> Tensor");
  // The two backwards in differentiable operations; normact/kernels/transforms.py computes them.
  m.def("norm_act_differentiable_backward(Tensor grad, Tensor x, Tensor? weight, Tensor? bias, Tensor? proxy_mean, "
        "Tensor? proxy_inverse_std, int num_groups, bool strided, str activation, float eps) -> (Tensor dx, Tensor parameters)");
  m.def("proxy_statistics_differentiable_backward(str activation, Tensor? grad_mean, Tensor? grad_inverse_std, Tensor? weight, "
        "Tensor? bias, Tensor? proxy_beta, Tensor? proxy_gamma, float eps) -> Tensor");
}

NORMACT_OPERATORS_ON_CPU(m) {
  m.impl("norm_act", NORMACT_OPERATOR(norm_act));
  m.impl("norm_act_again", NORMACT_OPERATOR(norm_act_again));
  m.impl("norm_act_backward", NORMACT_OPERATOR(norm_act_backward));
  m.impl("proxy_statistics", NORMACT_OPERATOR(proxy_statistics));
  m.impl("proxy_statistics_backward", NORMACT_OPERATOR(proxy_statistics_backward));
}
