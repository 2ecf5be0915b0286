// From run-time choices to template arguments, and how work is shared between threads.
#pragma once

#include "norm_act.h"
#include "threads.h"

namespace normact {

template <Activation kind>
using ActivationTag = std::integral_constant<Activation, kind>;

// Calls run(ActivationTag<...>(), element), the element a value of type float or bfloat16.
template <typename Run>
void with_types(Activation activation, Element element, Run run) {
  const auto with_activation = [&](auto value) {
    switch (activation) {
      case Activation::identity: return run(ActivationTag<Activation::identity>(), value);
      case Activation::relu: return run(ActivationTag<Activation::relu>(), value);
      case Activation::silu: return run(ActivationTag<Activation::silu>(), value);
      case Activation::gelu: return run(ActivationTag<Activation::gelu>(), value);
    }
  };
  if (element == Element::float32) {
    with_activation(float());
  } else {
    with_activation(bfloat16());
  }
}

// Units smaller than this together go to one thread: starting a second would cost more than it saves.
constexpr int64_t ELEMENTS_PER_THREAD = 16384;

template <typename Body>
void for_each_unit(int64_t units, int64_t elements_per_unit, Body body) {
  const int64_t grain = std::max<int64_t>(1, ELEMENTS_PER_THREAD / std::max<int64_t>(1, elements_per_unit));
  parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) body(unit);
  });
}

}  // namespace normact
