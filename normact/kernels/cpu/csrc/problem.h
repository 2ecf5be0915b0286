// What every kernel is given and saves.
//
//   y = (x - mean) * rstd     z = gamma y + beta     out = (phi(z) - m) r        m, r: the channel's proxy mean and 1/std
#pragma once

#include <cmath>
#include <cstdint>

#include "activation.h"

namespace normact {

struct Shape {
  int64_t images, channels, pixels, groups;
  bool strided;             // channel c is in group c % groups; otherwise in group c / group_channels
  double eps;
  int64_t group_channels;   // kept, since an integer division a row of 49 pixels cost a third of its backward

  Shape(int64_t images, int64_t channels, int64_t pixels, int64_t groups, bool strided, double eps)
      : images(images), channels(channels), pixels(pixels), groups(groups), strided(strided), eps(eps),
        group_channels(channels / groups) {}

  int64_t channel_of(int64_t group, int64_t j) const { return strided ? group + j * groups : group * group_channels + j; }
};

// One float32 per channel each; without proxy normalization the proxy mean is 0 and the inverse deviation 1.
struct Channels {
  const float *gamma, *beta, *proxy_mean, *proxy_inverse_std;
};

// Saved for backward, per (image, group). Float64: the mean of a group may be far larger than its deviation.
struct GroupStatistics {
  double mean, rstd;
};

// What a group's pixels need of its statistics. The center is the mean rounded to float32, so that x - center is exact where it
// matters; `below` is what rounding took. (scale * x + offset in one step would lose a mean of 1e4 deviations.)
struct GroupConstants {
  float center, below, rstd;

  explicit GroupConstants(const GroupStatistics& group)
      : center((float)group.mean), below((float)(group.mean - center)), rstd((float)group.rstd) {}
};

// Sums over the pixels of one channel of one image: g, g phi(z), d = g phi'(z) and d y; planes of images x channels floats.
struct ChannelSums {
  float *g, *g_value, *d, *d_y;
};

}  // namespace normact
