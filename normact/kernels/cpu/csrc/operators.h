// What autograd.cpp asks of operators.cpp without the dispatcher in between.
#pragma once

#include <tuple>

#include "tensors.h"

namespace normact {

// The operator norm_act_backward. With `overwrite`, dx is written over `grad` where types and layouts agree: the caller answers
// for it that nothing else can read that memory. The values are the same.
std::tuple<Tensor, Tensor> norm_act_gradients(const Tensor& grad, const Tensor& x, const Tensor& statistics,
                                              const OptionalTensor& weight, const OptionalTensor& bias,
                                              const OptionalTensor& proxy_mean, const OptionalTensor& proxy_inverse_std,
                                              int64_t num_groups, bool strided, Text activation, bool overwrite);

}  // namespace normact
