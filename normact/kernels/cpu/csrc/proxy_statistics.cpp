// Mean and 1/std of phi(X), X ~ N(m, s^2) with m = beta + gamma proxy_beta, s = |gamma (1 + proxy_gamma)|, per channel, and
// their slopes in m and s. ReLU and identity in closed form; SiLU and GELU by the trapezoid over z.
#include <cmath>

#include "dispatch.h"

namespace normact {

namespace {

constexpr float SMALLEST_SCALE = 1e-6f;
constexpr int MOST_NODES = 101;

struct Quadrature {
  int nodes;
  float node[MOST_NODES], weight[MOST_NODES];

  Quadrature(int nodes, double bound) : nodes(nodes) {
    const double step = 2 * bound / (nodes - 1);
    double total = 0;
    for (int k = 0; k < nodes; ++k) total += density(-bound + step * k);
    for (int k = 0; k < nodes; ++k) {
      node[k] = (float)(-bound + step * k);
      weight[k] = (float)(density(-bound + step * k) / total);
    }
  }
  static double density(double z) { return std::exp(-0.5 * z * z); }
};

// Relative error of 1/std, which float32 itself knows to 1e-7: the narrow rule 8e-8 for s <= 3, growing fast beyond; the wide one
// 2.4e-7 for s <= 8, and for larger s that of the reference's 129 nodes over [-8, 8]. The time goes with the nodes.
constexpr float LARGEST_NARROW_SCALE = 3.0f;

const Quadrature& quadrature_for(Vec s) {
  static const Quadrature narrow(65, 6.4), wide(101, 6.25);
  for (int lane = 0; lane < LANES; ++lane) {
    if (!(s[lane] <= LARGEST_NARROW_SCALE)) return wide;
  }
  return narrow;
}

struct Statistics {
  Vec mean, variance, mean_by_m, mean_by_s, variance_by_m, variance_by_s;
};

Vec square_root(Vec v) {
  for (int i = 0; i < LANES; ++i) v[i] = std::sqrt(v[i]);
  return v;
}

// Two passes over the nodes, the first keeping phi and phi' in the first-level cache:
// variance E[(phi - mean)^2], its slopes 2 E[(phi - mean) phi'] and 2 E[(phi - mean) phi' z].
template <Activation kind>
Statistics quadrature_statistics(Vec m, Vec s) {
  const Quadrature& rule = quadrature_for(s);
  Vec value[MOST_NODES], slope[MOST_NODES];
  Statistics result = {};
  for (int k = 0; k < rule.nodes; ++k) {
    const ValueAndSlope phi = value_and_slope<kind, float>(m + s * rule.node[k]);
    value[k] = phi.value;
    slope[k] = phi.slope * rule.weight[k];
    result.mean += phi.value * rule.weight[k];
    result.mean_by_m += slope[k];
    result.mean_by_s += slope[k] * rule.node[k];
  }
  for (int k = 0; k < rule.nodes; ++k) {
    const Vec deviation = value[k] - result.mean, covariance = deviation * slope[k];
    result.variance += deviation * deviation * rule.weight[k];
    result.variance_by_m += covariance;
    result.variance_by_s += covariance * rule.node[k];
  }
  result.variance_by_m *= 2.0f;
  result.variance_by_s *= 2.0f;
  return result;
}

// With a = m / s, P = Phi(a), Q = Phi(-a), p the density at a: mean m P + s p, variance s^2 [P + a^2 P Q + a p (Q - P) - p^2].
// Beyond |a| = 30 both tails are 0 or 1 in float32; the bound keeps a^2 finite.
Statistics relu_statistics(Vec m, Vec s) {
  const Vec a = at_most(at_least(m / s, broadcast(-30.0f)), broadcast(30.0f));
  const Normal normal = normal_distribution<float>(a);
  const Vec p = normal.density, P = normal.lower, Q = normal.upper;
  const Vec mean = m * P + s * p;
  const Vec spread = P + a * a * P * Q + a * p * (Q - P) - p * p;
  return {mean, s * s * at_least(spread, Vec{}), P, p, 2.0f * mean * Q, 2.0f * (s * P - mean * p)};
}

template <Activation kind>
Statistics statistics_of(Vec m, Vec s) {
  if constexpr (kind == Activation::identity) {
    return {m, s * s, broadcast(1.0f), Vec{}, Vec{}, 2.0f * s};
  } else if constexpr (kind == Activation::relu) {
    return relu_statistics(m, s);
  } else {
    return quadrature_statistics<kind>(m, s);
  }
}

}  // namespace

void proxy_statistics(const ProxyParameters& parameters, int64_t channels, Activation activation, float eps, float* mean,
                      float* inverse_std, float* slopes) {
  const int64_t vectors = (channels + LANES - 1) / LANES;
  // A vector of channels by quadrature costs as much as about 4096 elements of a map, a closed form as much as 64.
  const bool is_closed_form = activation == Activation::identity || activation == Activation::relu;
  with_types(activation, Element::float32, [&](auto kind, auto) {
    for_each_unit(vectors, is_closed_form ? 64 : 4096, [&](int64_t unit) {
      const int64_t c = unit * LANES;
      const int live = (int)std::min<int64_t>(LANES, channels - c);
      const auto read = [&](const float* row) { return load_first(row + c, live).a; };
      const auto write = [&](float* row, Vec v) { store_first(row + c, {v, Vec{}}, live); };
      const Vec gamma = read(parameters.gamma), beta = read(parameters.beta);
      const Vec proxy_beta = read(parameters.proxy_beta), proxy_gamma = read(parameters.proxy_gamma);
      const Vec m = beta + gamma * proxy_beta;
      const Vec s = at_least(absolute(gamma * (1.0f + proxy_gamma)), broadcast(SMALLEST_SCALE));
      const Statistics result = statistics_of<kind()>(m, s);
      const Vec inverse = 1.0f / square_root(result.variance + eps);
      const Vec by_variance = -0.5f * inverse * inverse * inverse;
      write(mean, result.mean);
      write(inverse_std, inverse);
      write(slopes, result.mean_by_m);
      write(slopes + channels, result.mean_by_s);
      write(slopes + 2 * channels, by_variance * result.variance_by_m);
      write(slopes + 3 * channels, by_variance * result.variance_by_s);
    });
  });
}

// d/dm and d/ds from the saved slopes, then m = beta + gamma proxy_beta and s = |gamma (1 + proxy_gamma)|.
void proxy_statistics_backward(const ProxyParameters& parameters, int64_t channels, const float* grad_mean,
                               const float* grad_inverse_std, const float* slopes, float* gradients) {
  for (int64_t c = 0; c < channels; ++c) {
    const float gamma = parameters.gamma[c], stretch = 1.0f + parameters.proxy_gamma[c], signed_scale = gamma * stretch;
    const float by_m = grad_mean[c] * slopes[c] + grad_inverse_std[c] * slopes[2 * channels + c];
    const float by_s = grad_mean[c] * slopes[channels + c] + grad_inverse_std[c] * slopes[3 * channels + c];
    // Below its bound s does not depend on the parameters.
    const float sign = signed_scale >= SMALLEST_SCALE ? 1.0f : signed_scale <= -SMALLEST_SCALE ? -1.0f : 0.0f;
    gradients[c] = by_m * parameters.proxy_beta[c] + by_s * sign * stretch;
    gradients[channels + c] = by_m;
    gradients[2 * channels + c] = by_m * gamma;
    gradients[3 * channels + c] = by_s * sign * gamma;
  }
}

}  // namespace normact
