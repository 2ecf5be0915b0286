// What a kernel is given, and the constants per (image, group, channel) that every layout shares.
//
//   y = (x - mean) * rstd     z = gamma y + beta     out = (phi(z) - m) r        m, r: the channel's proxy mean and 1/std
#pragma once

#include <cmath>
#include <cstdint>

#include "activation.h"

namespace proxynorm {

struct Shape {
  int64_t images, channels, pixels, groups;
  bool strided;        // channel c is in group c % groups; otherwise in group c / (channels / groups)
  double eps;

  int64_t group_channels() const { return channels / groups; }
  int64_t group_of(int64_t c) const { return strided ? c % groups : c / group_channels(); }
  int64_t channel_of(int64_t group, int64_t j) const { return strided ? group + j * groups : group * group_channels() + j; }
};

// One float32 per channel each; without proxy normalization the proxy mean is 0 and the inverse deviation 1.
struct Channels {
  const float *gamma, *beta, *proxy_mean, *proxy_inverse_std;
};

// Saved for backward, per (image, group). Float64: the mean of a group may be far larger than its deviation.
struct GroupStatistics {
  double mean, rstd;
};

// Per channel gradients of one image, reduced over images afterwards; planes of images x channels floats.
struct PartialGradients {
  float *gamma, *beta, *proxy_mean, *proxy_inverse_std;
};

// z = scale * (x - center) + offset. The center is the mean rounded to float32, so the difference is exact where it matters;
// what rounding took from the mean goes into the offset. (scale * x + offset' would lose a mean of 1e4 deviations.)
struct ChannelMap {
  float center, scale, offset, proxy_mean, proxy_inverse_std;
};

inline ChannelMap channel_map(const Channels& channels, int64_t c, const GroupStatistics& group) {
  const float center = (float)group.mean;
  const double scale = channels.gamma[c] * group.rstd;
  return {center, (float)scale, (float)(channels.beta[c] - scale * (group.mean - center)), channels.proxy_mean[c],
          channels.proxy_inverse_std[c]};
}

// The same map with proxy normalization folded in: out = phi'(scale t + offset) * gain + shift. ReLU and identity commute with
// the positive factor r, which goes into scale and offset: one multiply-add and one max an element.
struct FoldedMap {
  float center, scale, offset, gain, shift;
};

template <Activation kind>
inline FoldedMap folded_map(const ChannelMap& map) {
  const float r = map.proxy_inverse_std, shift = -map.proxy_mean * r;
  if constexpr (kind == Activation::relu || kind == Activation::identity) {
    return {map.center, map.scale * r, map.offset * r + shift, 1.0f, shift};
  } else {
    return {map.center, map.scale, map.offset, r, shift};
  }
}

struct FoldedVectors {
  Vec center, scale, offset, gain, shift;
};

template <Activation kind>
PROXYNORM_INLINE Vec mapped(Vec x, const FoldedVectors& map) {
  const Vec z = map.scale * (x - map.center) + map.offset;
  if constexpr (kind == Activation::identity) {
    return z;
  } else if constexpr (kind == Activation::relu) {
    return at_least(z, map.shift);   // max(scale t + offset, 0) + shift, with shift already in the offset
  } else {
    return activate<kind>(z) * map.gain + map.shift;
  }
}

// Sums over the pixels of one channel of one image, t = x - center, d = g phi'(z).
struct GradientSums {
  double g, g_value, d, d_t;
};

// ReLU and identity: phi(z) = phi'(z) z, so the sum of g phi(z) follows from the two others.
template <Activation kind>
constexpr bool value_sum_follows = kind == Activation::relu || kind == Activation::identity;

template <Activation kind>
inline void finish_sums(GradientSums& sums, const ChannelMap& map) {
  if constexpr (value_sum_follows<kind>) sums.g_value = map.scale * sums.d_t + map.offset * sums.d;
}

// Writes the channel's parameter gradients; adds its share of mean(h) and mean(h y), h = gamma r d, to the group's sums.
inline void channel_gradients(const GradientSums& sums, const ChannelMap& map, float gamma, const GroupStatistics& group,
                              int64_t at, const PartialGradients& partial, double& sum_h, double& sum_h_y) {
  const double r = map.proxy_inverse_std;
  const double d_y = (sums.d_t - (group.mean - map.center) * sums.d) * group.rstd;
  partial.beta[at] = (float)(r * sums.d);
  partial.gamma[at] = (float)(r * d_y);
  partial.proxy_mean[at] = (float)(-r * sums.g);
  partial.proxy_inverse_std[at] = (float)(sums.g_value - map.proxy_mean * sums.g);
  sum_h += gamma * r * sums.d;
  sum_h_y += gamma * r * d_y;
}

// dx = rstd (h - mean(h) - y mean(h y)) = slope d + (tilt t + level), with slope = rstd gamma r per channel.
struct GroupGradient {
  float tilt, level;
};

inline GroupGradient group_gradient(const GroupStatistics& group, double mean_h, double mean_h_y) {
  const double tilt = -group.rstd * group.rstd * mean_h_y;
  const double below_center = group.mean - (float)group.mean;
  return {(float)tilt, (float)(-group.rstd * mean_h - tilt * below_center)};
}

// Running sums of one lane each: g, g phi(z), d = g phi'(z), d t.
struct LaneSums {
  Vec g, g_value, d, d_t;
};

template <Activation kind>
PROXYNORM_INLINE void accumulate(LaneSums& sums, Vec g, Vec t, Vec scale, Vec offset) {
  const ValueAndSlope phi = value_and_slope<kind>(scale * t + offset);
  const Vec d = g * phi.slope;
  sums.g += g;
  sums.d += d;
  sums.d_t += d * t;
  if constexpr (!value_sum_follows<kind>) sums.g_value += g * phi.value;
}

struct InputGradientVectors {
  Vec center, scale, offset, slope, tilt, level;
};

template <Activation kind>
PROXYNORM_INLINE Vec input_gradient(Vec x, Vec g, const InputGradientVectors& constants) {
  const Vec t = x - constants.center;
  const Vec d = g * value_and_slope<kind>(constants.scale * t + constants.offset).slope;
  return constants.slope * d + (constants.tilt * t + constants.level);
}

}  // namespace proxynorm
