// The arithmetic of one vector of elements, the same in every layout, and its constants per channel of one image.
#pragma once

#include "problem.h"

namespace normact {

// ReLU and identity commute with the positive factor r and satisfy phi(z) = phi'(z) z.
template <Activation kind>
constexpr bool is_piecewise_linear = kind == Activation::relu || kind == Activation::identity;

// ---- forward: t = x - center; out = phi(scale t + offset) gain + shift -----------------------------------------------
//
// Where phi is piecewise linear, r and -m r go into scale and offset: one multiply-add and one max an element.

struct ForwardConstants {
  float scale, offset, gain, shift;
};

template <Activation kind>
PROXYNORM_INLINE ForwardConstants forward_constants(const Channels& channels, int64_t c, const GroupConstants& group) {
  const float r = channels.proxy_inverse_std[c], shift = -channels.proxy_mean[c] * r;
  const float gain = is_piecewise_linear<kind> ? r : 1.0f;
  const float scale = channels.gamma[c] * gain * group.rstd;
  const float offset = channels.beta[c] * gain - scale * group.below;
  return {scale, is_piecewise_linear<kind> ? offset + shift : offset, r, shift};
}

struct ForwardVectors {
  Vec center, scale, offset, gain, shift;
};

template <Activation kind, typename T>
PROXYNORM_INLINE Vec mapped(Vec x, const ForwardVectors& map) {
  const Vec z = multiply_add(map.scale, x - map.center, map.offset);
  if constexpr (kind == Activation::identity) {
    return z;
  } else if constexpr (kind == Activation::relu) {
    return at_least(z, map.shift);   // max(scale t + offset, 0) + shift, with shift already in the offset
  } else {
    return multiply_add(activate<kind, T>(z), map.gain, map.shift);
  }
}

// ---- backward, first pass: sums over pixels of g, g phi(z), d = g phi'(z), d t, with z = scale t + offset --------------

struct BackwardConstants {
  float scale, offset;
};

PROXYNORM_INLINE BackwardConstants backward_constants(const Channels& channels, int64_t c, const GroupConstants& group) {
  const float scale = channels.gamma[c] * group.rstd;
  return {scale, channels.beta[c] - scale * group.below};
}

struct BackwardVectors {
  Vec center, scale, offset;
};

struct LaneSums {
  Vec g, g_value, d, d_t;
};

// Returns d.
template <Activation kind, typename T>
PROXYNORM_INLINE Vec accumulate(LaneSums& sums, Vec x, Vec g, const BackwardVectors& constants) {
  const Vec t = x - constants.center;
  const ValueAndSlope phi = value_and_slope<kind, T>(constants.scale * t + constants.offset);
  const Vec d = g * phi.slope;
  sums.g += g;
  sums.d += d;
  sums.d_t += d * t;
  if constexpr (!is_piecewise_linear<kind>) sums.g_value += g * phi.value;
  return d;
}

// The sums over a channel's pixels.
struct ChannelTotals {
  double g, g_value, d, d_t;
};

// ---- backward, between the passes: sums over the channels of a group, h = gamma r d ------------------------------------

struct GroupSums {
  double h = 0, h_y = 0;

  // Adds a channel's share, and writes what its parameters' gradients need to `at` of the image's planes.
  template <Activation kind>
  PROXYNORM_INLINE void add(const ChannelTotals& channel, const Channels& channels, int64_t c, const GroupConstants& group,
                            const ChannelSums& planes, int64_t at) {
    const float d_y = (float)(channel.d_t - group.below * channel.d) * group.rstd;
    planes.g[at] = (float)channel.g;
    planes.d[at] = (float)channel.d;
    planes.d_y[at] = d_y;
    if constexpr (!is_piecewise_linear<kind>) planes.g_value[at] = (float)channel.g_value;
    const float factor = channels.gamma[c] * channels.proxy_inverse_std[c];
    h += factor * channel.d;
    h_y += factor * d_y;
  }
};

// ---- backward, second pass: dx = rstd (h - mean(h) - y mean(h y)) = slope d + (tilt t + level), slope = rstd gamma r ----

struct GroupGradient {
  float tilt, level;
};

inline GroupGradient group_gradient(const GroupConstants& group, const GroupSums& sums, int64_t elements) {
  const double rstd = group.rstd, tilt = -rstd * rstd * sums.h_y / (double)elements;
  return {(float)tilt, (float)(-rstd * sums.h / (double)elements - tilt * group.below)};
}

struct InputGradientVectors {
  BackwardVectors map;
  Vec slope, tilt, level;
};

template <Activation kind, typename T>
PROXYNORM_INLINE Vec gradient_of_z(Vec x, Vec g, const BackwardVectors& map) {
  return g * value_and_slope<kind, T>(map.scale * (x - map.center) + map.offset).slope;
}

PROXYNORM_INLINE Vec input_gradient(Vec x, Vec d, const InputGradientVectors& constants) {
  return multiply_add(constants.slope, d, multiply_add(constants.tilt, x - constants.map.center, constants.level));
}

}  // namespace normact
