// What the operators ask of torch, in two dialects: its C++ interface, for a library that is built with the very torch that
// loads it; and its stable C interface (NORMACT_STABLE_ABI), for one that a wheel brings and torch 2.10 and later load.
#pragma once

#include <optional>

#ifdef NORMACT_STABLE_ABI
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string_view>

namespace normact {

using torch::stable::Tensor;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;
using Text = std::string_view;

inline Tensor empty(Sizes sizes, ScalarType type, MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(sizes, type, std::nullopt, std::nullopt, std::nullopt, format);
}
inline Tensor dense(const Tensor& tensor, MemoryFormat format = MemoryFormat::Contiguous) {
  return format == MemoryFormat::Contiguous && tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor, format);
}
inline Tensor converted(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

}  // namespace normact

#define NORMACT_OPERATORS(library) STABLE_TORCH_LIBRARY(normact, library)
#define NORMACT_OPERATORS_ON_CPU(library) STABLE_TORCH_LIBRARY_IMPL(normact, CPU, library)
#define NORMACT_OPERATOR(function) TORCH_BOX(&function)
#else
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace normact {

using at::MemoryFormat;
using at::ScalarType;
using at::Tensor;
using Sizes = at::IntArrayRef;
using Text = c10::string_view;

inline Tensor empty(Sizes sizes, ScalarType type, MemoryFormat format = MemoryFormat::Contiguous) {
  return at::empty(sizes, at::TensorOptions(type), format);
}
inline Tensor dense(const Tensor& tensor, MemoryFormat format = MemoryFormat::Contiguous) {
  return tensor.contiguous(format);
}
inline Tensor converted(const Tensor& tensor, ScalarType type) { return tensor.to(type); }

}  // namespace normact

#define NORMACT_OPERATORS(library) TORCH_LIBRARY(normact, library)
#define NORMACT_OPERATORS_ON_CPU(library) TORCH_LIBRARY_IMPL(normact, CPU, library)
#define NORMACT_OPERATOR(function) function
#endif

namespace normact {
using OptionalTensor = std::optional<Tensor>;
}
