// How work is shared between torch's threads, in the dialect of tensors.h.
#pragma once

#ifdef NORMACT_STABLE_ABI
#include <torch/csrc/stable/ops.h>

namespace normact {
using torch::stable::parallel_for;
inline int64_t number_of_threads() { return torch::stable::get_num_threads(); }
}  // namespace normact
#else
#include <ATen/Parallel.h>

namespace normact {
using at::parallel_for;
inline int64_t number_of_threads() { return at::get_num_threads(); }
}  // namespace normact
#endif
