// The operators' CPU implementations: tensors checked and unwrapped here, arithmetic in the files beside this one.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "norm_act.h"

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using normact::Activation;

Activation activation_named(c10::string_view name) {
  if (name == "identity") return Activation::identity;
  if (name == "relu") return Activation::relu;
  if (name == "silu") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  TORCH_CHECK(false, "activation '", name, "' has no fused form; use identity, relu, silu or gelu");
}

// The layout a kernel reads. One pixel an image is the same memory in both; then lanes must be channels.
struct Arranged {
  at::MemoryFormat format;
  normact::Layout layout;
};

Arranged arrangement_of(const Tensor& x) {
  const bool one_pixel = x.numel() == x.size(0) * x.size(1);
  const auto channels_last = x.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d;
  if ((x.dim() == 4 || x.dim() == 5) && !x.is_contiguous() && x.is_contiguous(channels_last)) {
    return {channels_last, normact::Layout::nhwc};
  }
  return {at::MemoryFormat::Contiguous, one_pixel ? normact::Layout::nhwc : normact::Layout::nchw};
}

normact::Element element_of(const Tensor& x) {
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16, "x is ", x.scalar_type(),
              "; the fused form computes float32 and bfloat16");
  return x.scalar_type() == at::kFloat ? normact::Element::float32 : normact::Element::bfloat16;
}

normact::Shape shape_of(const Tensor& x, int64_t num_groups, bool strided, double eps) {
  TORCH_CHECK(x.dim() >= 2 && x.dim() <= 5, "x has ", x.dim(), " dimensions; (N, C, *spatial) with 2 to 5 is needed");
  TORCH_CHECK(num_groups >= 1 && x.size(1) % num_groups == 0, "num_groups ", num_groups, " does not divide the ", x.size(1),
              " channels");
  const int64_t images = x.size(0), channels = x.size(1);
  const int64_t pixels = images * channels != 0 ? x.numel() / (images * channels) : 0;
  return normact::Shape(images, channels, pixels, num_groups, strided, eps);
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
    TORCH_CHECK(parameter->dim() == 1 && parameter->size(0) == channels_, "a per-channel parameter has shape ",
                parameter->sizes(), "; (", channels_, ",) is needed");
    const Tensor row = parameter->to(at::kFloat).contiguous();
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
                   c10::string_view activation, bool have_statistics) {
  const Arranged arranged = arrangement_of(x);
  const Tensor input = x.contiguous(arranged.format);
  Tensor out = at::empty_like(input, arranged.format);
  if (input.numel() == 0) return out;
  const auto forward = arranged.layout == normact::Layout::nchw ? normact::forward_nchw : normact::forward_nhwc;
  forward(shape, channels_of(rows), {input.const_data_ptr(), nullptr, out.mutable_data_ptr(), statistics_data(statistics)},
          activation_named(activation), element_of(input), have_statistics);
  return out;
}

std::tuple<Tensor, Tensor> norm_act(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                                    const OptionalTensor& proxy_mean, const OptionalTensor& proxy_inverse_std,
                                    int64_t num_groups, bool strided, c10::string_view activation, double eps) {
  const normact::Shape shape = shape_of(x, num_groups, strided, eps);
  const Tensor statistics = at::empty({shape.images, num_groups, 2}, x.options().dtype(at::kDouble));
  const ChannelRows rows = rows_of(shape.channels, weight, bias, proxy_mean, proxy_inverse_std);
  return {map_forward(x, statistics, shape, rows, activation, false), statistics};
}

Tensor norm_act_again(const Tensor& x, const Tensor& statistics, const OptionalTensor& weight, const OptionalTensor& bias,
                      const OptionalTensor& proxy_mean, const OptionalTensor& proxy_inverse_std, int64_t num_groups,
                      bool strided, c10::string_view activation) {
  const normact::Shape shape = shape_of(x, num_groups, strided, 0.0);
  const ChannelRows rows = rows_of(shape.channels, weight, bias, proxy_mean, proxy_inverse_std);
  return map_forward(x, statistics.contiguous(), shape, rows, activation, true);
}

std::tuple<Tensor, Tensor> norm_act_backward(const Tensor& grad, const Tensor& x, const Tensor& statistics,
                                             const OptionalTensor& weight, const OptionalTensor& bias,
                                             const OptionalTensor& proxy_mean, const OptionalTensor& proxy_inverse_std,
                                             int64_t num_groups, bool strided, c10::string_view activation) {
  const normact::Shape shape = shape_of(x, num_groups, strided, 0.0);
  const Arranged arranged = arrangement_of(x);
  const Tensor input = x.contiguous(arranged.format), gradient = grad.to(x.scalar_type()).contiguous(arranged.format);
  const auto float32 = x.options().dtype(at::kFloat);
  Tensor dx = at::empty_like(input, arranged.format);
  if (input.numel() == 0) return {dx, at::zeros({4, shape.channels}, float32)};

  const ChannelRows rows = rows_of(shape.channels, weight, bias, proxy_mean, proxy_inverse_std);
  const Tensor planes = at::empty({normact::SUM_PLANES, shape.images, shape.channels}, float32);
  const auto plane = [&](int64_t k) { return planes.mutable_data_ptr<float>() + k * shape.images * shape.channels; };
  const normact::ChannelSums sums = {plane(0), plane(1), plane(2), plane(3)};
  const auto backward = arranged.layout == normact::Layout::nchw ? normact::backward_nchw : normact::backward_nhwc;
  backward(shape, channels_of(rows),
           {input.const_data_ptr(), gradient.const_data_ptr(), dx.mutable_data_ptr(), statistics_data(statistics.contiguous())},
           activation_named(activation), element_of(input), sums);

  Tensor parameters = at::empty({4, shape.channels}, float32);
  normact::parameter_gradients(shape, channels_of(rows), sums, activation_named(activation),
                                 parameters.mutable_data_ptr<float>());
  return {dx, parameters};
}

// Rows gamma, beta, proxy_beta, proxy_gamma.
ChannelRows proxy_rows(const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& proxy_beta,
                       const OptionalTensor& proxy_gamma) {
  for (const OptionalTensor* given : {&weight, &bias, &proxy_beta, &proxy_gamma}) {
    if (given->has_value()) {
      return ChannelRows((*given)->numel(), {{&weight, 1.0f}, {&bias, 0.0f}, {&proxy_beta, 0.0f}, {&proxy_gamma, 0.0f}});
    }
  }
  TORCH_CHECK(false, "proxy statistics of no parameters: give at least one of weight, bias, proxy_beta and proxy_gamma");
}

std::tuple<Tensor, Tensor, Tensor> proxy_statistics(c10::string_view activation, const OptionalTensor& weight,
                                                    const OptionalTensor& bias, const OptionalTensor& proxy_beta,
                                                    const OptionalTensor& proxy_gamma, double eps) {
  const ChannelRows rows = proxy_rows(weight, bias, proxy_beta, proxy_gamma);
  Tensor mean = at::empty({rows.channels()}, at::kFloat), inverse_std = at::empty({rows.channels()}, at::kFloat);
  Tensor slopes = at::empty({4, rows.channels()}, at::kFloat);
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
  const Tensor slope = slopes.contiguous();
  Tensor out = at::empty({4, rows.channels()}, at::kFloat);
  normact::proxy_statistics_backward({rows[0], rows[1], rows[2], rows[3]}, rows.channels(), gradients[0], gradients[1],
                                       slope.const_data_ptr<float>(), out.mutable_data_ptr<float>());
  return out;
}

}  // namespace

TORCH_LIBRARY(normact, m) {
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

TORCH_LIBRARY_IMPL(normact, CPU, m) {
  m.impl("norm_act", norm_act);
  m.impl("norm_act_again", norm_act_again);
  m.impl("norm_act_backward", norm_act_backward);
  m.impl("proxy_statistics", proxy_statistics);
  m.impl("proxy_statistics_backward", proxy_statistics_backward);
}
