// Gradients: two nodes of the autograd graph, written like the ones of torch's own operators, so that they serve eager mode,
// torch.compile, torch.func and distributed training alike, without the interpreter in backward. Torch's stable interface knows
// no such nodes: there normact/kernels/gradients.py takes their place.
#ifndef NORMACT_STABLE_ABI
#include "operators.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <array>
#include <memory>
#include <string>

namespace {

using at::Tensor;
using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

template <typename Signature>
c10::TypedOperatorHandle<Signature> operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Newer torch counts references inside the node, older ones in a shared_ptr with a deleter that does not recurse.
using NodePointer = decltype(torch::autograd::Edge::function);

template <typename T>
NodePointer owned(T* node) {
  if constexpr (std::is_same_v<NodePointer, std::shared_ptr<Node>>) {
    return NodePointer(node, [](T* p) { deleteNode(p); });
  } else {
    return NodePointer(std::unique_ptr<Node>(node));
  }
}

// A backward that may be differentiated itself (create_graph) is in ordinary operations: normact/kernels/transforms.py.
bool is_differentiated() { return at::GradMode::is_enabled(); }

void refuse_forward_mode(const char* name, std::initializer_list<OptionalTensor> tensors) {
  for (const OptionalTensor& tensor : tensors) {
    TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(tensor), name,
                                " has no forward-mode derivative; build the layer with kernel=\"reference\" for that");
  }
}

// Whether the node that holds `gradient` alone can read its memory: no other tensor, view or hook, no tracing, and no memory
// that torch was lent (NumPy's, another process').
bool is_held_here_alone(const Tensor& gradient) {
  const c10::DispatchKeySet keys =
      gradient.key_set() - c10::autograd_dispatch_keyset_with_ADInplaceOrView - c10::autocast_dispatch_keyset;
  return keys == c10::DispatchKeySet(c10::DispatchKey::CPU) && gradient.use_count() == 1 &&
         gradient.storage().use_count() == 1 && gradient.storage().resizable() && !c10::impl::dispatch_mode_enabled();
}

// Saved tensors of which any may be absent.
template <size_t size>
class SavedTensors {
 public:
  void save(const std::array<OptionalTensor, size>& tensors) {
    for (size_t i = 0; i < size; ++i) {
      if (tensors[i].has_value()) saved_[i] = SavedVariable(*tensors[i], /*is_output=*/false);
    }
  }
  std::array<OptionalTensor, size> unpack() const {
    std::array<OptionalTensor, size> tensors;
    for (size_t i = 0; i < size; ++i) {
      const Tensor tensor = saved_[i].unpack();
      if (tensor.defined()) tensors[i] = tensor;
    }
    return tensors;
  }
  void release() {
    for (SavedVariable& variable : saved_) variable.reset_data();
  }

 private:
  std::array<SavedVariable, size> saved_;
};

// ---- norm, affine, activation, proxy normalization ------------------------------------------------------------------

using BackwardSignature = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                                                     const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                                     int64_t, bool, c10::string_view);
using DifferentiableSignature = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const OptionalTensor&,
                                                           const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                                           int64_t, bool, c10::string_view, double);

struct NormActBackward : public Node {
  enum Saved : size_t { X, STATISTICS, WEIGHT, BIAS, PROXY_MEAN, PROXY_INVERSE_STD, COUNT };
  SavedTensors<COUNT> saved;
  int64_t num_groups = 1;
  bool strided = false;
  std::string activation;
  double eps = 0;

  std::string name() const override { return "NormActBackward"; }

  variable_list apply(variable_list&& gradients) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(5);   // x, weight, bias, proxy_mean, proxy_inverse_std
    if (!gradients[0].defined()) return result;
    // Unpacking may run a checkpoint's forward, which needs the layer of autograd.
    const std::array<OptionalTensor, COUNT> kept = saved.unpack();
    const auto [dx, parameters] = is_differentiated() ? differentiable(gradients[0], kept) : fused(gradients[0], kept);
    if (task_should_compute_output(0)) result[0] = dx;
    for (size_t i = 1; i < 5; ++i) {
      if (task_should_compute_output(i)) result[i] = parameters.select(0, (int64_t)i - 1);
    }
    return result;
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    saved.release();
  }

 private:
  using Kept = std::array<OptionalTensor, COUNT>;

  std::tuple<Tensor, Tensor> fused(const Tensor& gradient, const Kept& kept) const {
    static const auto backward = operator_named<BackwardSignature>("normact::norm_act_backward");
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    if (is_held_here_alone(gradient)) {
      return normact::norm_act_gradients(gradient, *kept[X], *kept[STATISTICS], kept[WEIGHT], kept[BIAS], kept[PROXY_MEAN],
                                         kept[PROXY_INVERSE_STD], num_groups, strided, activation, /*overwrite=*/true);
    }
    return backward.call(gradient, *kept[X], *kept[STATISTICS], kept[WEIGHT], kept[BIAS], kept[PROXY_MEAN],
                         kept[PROXY_INVERSE_STD], num_groups, strided, activation);
  }
  std::tuple<Tensor, Tensor> differentiable(const Tensor& gradient, const Kept& kept) const {
    static const auto backward = operator_named<DifferentiableSignature>("normact::norm_act_differentiable_backward");
    return backward.call(gradient, *kept[X], kept[WEIGHT], kept[BIAS], kept[PROXY_MEAN], kept[PROXY_INVERSE_STD], num_groups,
                         strided, activation, eps);
  }
};

std::tuple<Tensor, Tensor> norm_act(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                                    const OptionalTensor& proxy_mean, const OptionalTensor& proxy_inverse_std,
                                    int64_t num_groups, bool strided, c10::string_view activation, double eps) {
  static const auto forward = operator_named<decltype(norm_act)>("normact::norm_act");
  refuse_forward_mode("normact::norm_act", {x, weight, bias, proxy_mean, proxy_inverse_std});
  NormActBackward* node = nullptr;
  NodePointer owner;
  if (torch::autograd::compute_requires_grad(x, weight, bias, proxy_mean, proxy_inverse_std)) {
    owner = owned(node = new NormActBackward());
    node->set_next_edges(torch::autograd::collect_next_edges(x, weight, bias, proxy_mean, proxy_inverse_std));
  }
  Tensor out, statistics;
  {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    std::tie(out, statistics) =
        forward.call(x, weight, bias, proxy_mean, proxy_inverse_std, num_groups, strided, activation, eps);
  }
  if (node) {
    node->num_groups = num_groups;
    node->strided = strided;
    node->activation = std::string(activation);
    node->eps = eps;
    node->saved.save({x, statistics, weight, bias, proxy_mean, proxy_inverse_std});
    torch::autograd::set_history(out, owner);
  }
  return {out, statistics};
}

// ---- proxy statistics -----------------------------------------------------------------------------------------------

using ProxyBackwardSignature = Tensor(const OptionalTensor&, const OptionalTensor&, const Tensor&, const OptionalTensor&,
                                      const OptionalTensor&, const OptionalTensor&, const OptionalTensor&);
using ProxyDifferentiableSignature = Tensor(c10::string_view, const OptionalTensor&, const OptionalTensor&,
                                            const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                            const OptionalTensor&, double);

struct ProxyStatisticsBackward : public Node {
  enum Saved : size_t { SLOPES, WEIGHT, BIAS, PROXY_BETA, PROXY_GAMMA, COUNT };
  SavedTensors<COUNT> saved;
  std::string activation;
  double eps = 0;

  std::string name() const override { return "ProxyStatisticsBackward"; }

  variable_list apply(variable_list&& gradients) override {
    std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(4);   // weight, bias, proxy_beta, proxy_gamma
    if (!gradients[0].defined() && !gradients[1].defined()) return result;
    const auto given = [](const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };
    const OptionalTensor grad_mean = given(gradients[0]), grad_inverse_std = given(gradients[1]);
    const std::array<OptionalTensor, COUNT> kept = saved.unpack();
    const Tensor parameters = is_differentiated() ? differentiable(grad_mean, grad_inverse_std, kept)
                                                  : fused(grad_mean, grad_inverse_std, kept);
    for (size_t i = 0; i < 4; ++i) {
      if (task_should_compute_output(i)) result[i] = parameters.select(0, (int64_t)i);
    }
    return result;
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    saved.release();
  }

 private:
  using Kept = std::array<OptionalTensor, COUNT>;

  static Tensor fused(const OptionalTensor& grad_mean, const OptionalTensor& grad_inverse_std, const Kept& kept) {
    static const auto backward = operator_named<ProxyBackwardSignature>("normact::proxy_statistics_backward");
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return backward.call(grad_mean, grad_inverse_std, *kept[SLOPES], kept[WEIGHT], kept[BIAS], kept[PROXY_BETA],
                         kept[PROXY_GAMMA]);
  }
  Tensor differentiable(const OptionalTensor& grad_mean, const OptionalTensor& grad_inverse_std, const Kept& kept) const {
    static const auto backward =
        operator_named<ProxyDifferentiableSignature>("normact::proxy_statistics_differentiable_backward");
    return backward.call(activation, grad_mean, grad_inverse_std, kept[WEIGHT], kept[BIAS], kept[PROXY_BETA], kept[PROXY_GAMMA],
                         eps);
  }
};

std::tuple<Tensor, Tensor, Tensor> proxy_statistics(c10::string_view activation, const OptionalTensor& weight,
                                                    const OptionalTensor& bias, const OptionalTensor& proxy_beta,
                                                    const OptionalTensor& proxy_gamma, double eps) {
  static const auto forward = operator_named<decltype(proxy_statistics)>("normact::proxy_statistics");
  refuse_forward_mode("normact::proxy_statistics", {weight, bias, proxy_beta, proxy_gamma});
  ProxyStatisticsBackward* node = nullptr;
  NodePointer owner;
  if (torch::autograd::compute_requires_grad(weight, bias, proxy_beta, proxy_gamma)) {
    owner = owned(node = new ProxyStatisticsBackward());
    node->set_next_edges(torch::autograd::collect_next_edges(weight, bias, proxy_beta, proxy_gamma));
  }
  Tensor mean, inverse_std, slopes;
  {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    std::tie(mean, inverse_std, slopes) = forward.call(activation, weight, bias, proxy_beta, proxy_gamma, eps);
  }
  if (node) {
    node->activation = std::string(activation);
    node->eps = eps;
    node->saved.save({slopes, weight, bias, proxy_beta, proxy_gamma});
    torch::autograd::set_history(std::vector<Tensor>{mean, inverse_std}, owner);
  }
  return {mean, inverse_std, slopes};
}

}  // namespace

TORCH_LIBRARY_IMPL(normact, Autograd, m) {
  m.impl("norm_act", norm_act);
  m.impl("proxy_statistics", proxy_statistics);
  // Their results may be used; differentiating them raises "derivative for ... is not implemented".
  m.impl("norm_act_again", torch::autograd::autogradNotImplementedFallback());
  m.impl("norm_act_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("proxy_statistics_backward", torch::autograd::autogradNotImplementedFallback());
}
#endif
