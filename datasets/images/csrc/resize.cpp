// Bilinear resize with antialiasing, mirrored if asked for, from interleaved pixels to planes in one pass.
//
//     row r of the middle:     m[r, x] = (sum_k a[x, k] p[r, first(x) + k] + half) >> bits, in 0..255
//     row y of the result:     o[y, x] = (sum_k b[y, k] m[first(y) + k, x] + half) >> bits, in 0..255
//
// a and b are a triangle's values in double precision, summing to 1, rounded to 16 bits with as many bits behind the
// point as the largest has room for. These are the numbers of torch's resize of bytes, whose results it equals.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <memory>
#include <vector>

#include "images.h"

#if defined(__AVX2__)
#include "lanes.h"

namespace {

using lanes::kLanes;
using lanes::Vector;

constexpr int kLaneBytes = 16;
constexpr int kVectorBytes = kLanes * kLaneBytes;
constexpr int kMiddleBytes = 4;  // of a pixel: three colours and a place that is not used
constexpr int kMaxBits = 22;

// One axis of a request.
struct Extent {
  int first, count;               // of the pixels that are given
  int size, result_size;          // of the whole image, before and after
  int window_first, window_count;  // of the result that is asked for
};

// Which of the given pixels make each one of the window, and their weights in pairs; a last one without partner has 0.
struct Axis {
  std::vector<int32_t> first;
  std::vector<int32_t> pair_weights;  // (pixels of the window, pairs): low and high 16 bits
  int pairs = 0;
  int bits = 0;
  bool is_given = true;  // all that the window needs

  explicit Axis(const Extent& extent) : first(extent.window_count) {
    const int size = extent.size, result_size = extent.result_size;
    const double scale = static_cast<double>(size) / result_size;
    const double support = std::max(scale, 1.0), slope = scale >= 1.0 ? 1.0 / scale : 1.0;
    const int taps = static_cast<int>(std::ceil(static_cast<float>(support))) * 2 + 1;
    std::vector<double> weights(static_cast<size_t>(result_size) * taps, 0.0);
    double largest = 0.0;
    int most = 1;
    for (int i = 0; i < result_size; ++i) {
      const double centre = scale * (i + 0.5);
      const int begin = std::max(static_cast<int>(centre - support + 0.5), 0);
      const int count = std::min(std::min(static_cast<int>(centre + support + 0.5), size) - begin, taps);
      double* row = &weights[static_cast<size_t>(i) * taps];
      double total = 0.0;
      for (int k = 0; k < count; ++k) {
        const double distance = std::abs((k + begin - centre + 0.5) * slope);
        row[k] = distance < 1.0 ? 1.0 - distance : 0.0;
        total += row[k];
      }
      for (int k = 0; k < count; ++k) {
        if (total != 0.0) row[k] /= total;
        largest = std::max(largest, row[k]);
      }
      most = std::max(most, count);
      const int place = i - extent.window_first;
      if (place < 0 || place >= extent.window_count) continue;
      first[place] = begin - extent.first;
      if (first[place] < 0 || first[place] + count > extent.count) is_given = false;
    }
    while (bits < kMaxBits && static_cast<int>(0.5 + largest * (1 << (bits + 1))) < (1 << 15)) ++bits;
    pairs = (most + 1) / 2;
    pair_weights.resize(first.size() * pairs);
    for (int i = 0; i < extent.window_count; ++i) {
      const double* row = &weights[static_cast<size_t>(extent.window_first + i) * taps];
      for (int pair = 0; pair < pairs; ++pair) {
        const int low = rounded(row[2 * pair]), high = 2 * pair + 1 < taps ? rounded(row[2 * pair + 1]) : 0;
        pair_weights[static_cast<size_t>(i) * pairs + pair] = (high << 16) | low;
      }
    }
  }

  int rounded(double weight) const { return static_cast<int>(0.5 + weight * (1 << bits)); }
};

// Source rows whose last pixels may be read a little beyond their end: those near the end of all are copied.
struct Source {
  const ResizeRequest& request;
  int64_t reach;  // bytes of a row that are read
  std::vector<uint8_t> copies;

  Source(const ResizeRequest& request, const Axis& across)
      : request(request),
        reach(3 * static_cast<int64_t>(*std::max_element(across.first.begin(), across.first.end())) +
              6 * (across.pairs - 1) + kLaneBytes),
        copies(kLanes * reach) {}

  const uint8_t* row(int number, int lane) {
    const int64_t start = number * request.row_bytes, width = 3 * static_cast<int64_t>(request.columns);
    const int64_t end = (request.rows - 1) * request.row_bytes + width;
    if (start + reach <= end) return request.pixels + start;
    uint8_t* copy = &copies[lane * reach];
    std::memcpy(copy, request.pixels + start, std::min(width, reach));
    return copy;
  }
};

// kLanes rows at a time, one in each lane.
void resize_across(const uint8_t* const* rows, const Axis& axis, bool mirror, uint8_t* const* middle) {
  // bytes 0 to 5 are two pixels: each colour's two samples side by side, as 16 bits
  const Vector order = lanes::repeat(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
  const Vector half = lanes::fill(1 << (axis.bits - 1));
  const int width = static_cast<int>(axis.first.size());
  const int32_t* weights = axis.pair_weights.data();
  for (int x = 0; x < width; ++x, weights += axis.pairs) {
    const int64_t offset = 3 * static_cast<int64_t>(axis.first[x]);
    Vector sum = half;
    for (int pair = 0; pair < axis.pairs; ++pair) {
      const Vector samples = lanes::shuffle(lanes::load_each(rows, offset + 6 * pair), order);
      sum = lanes::add(sum, lanes::sums_of_pairs(samples, lanes::fill(weights[pair])));
    }
    sum = lanes::shift_right(sum, axis.bits);
    lanes::store_firsts(middle, kMiddleBytes * static_cast<int64_t>(mirror ? width - 1 - x : x),
                        lanes::to_bytes(sum, sum, sum, sum));
  }
}

// One row of the result, as many pixels at a time as a vector holds.
void resize_down(const uint8_t* middle, int64_t middle_row, const int32_t* weights, const Axis& axis, int width,
                 uint8_t* const* planes) {
  constexpr int kPixels = kVectorBytes / kMiddleBytes;
  const Vector half = lanes::fill(1 << (axis.bits - 1)), none = lanes::zero();
  const Vector by_colour = lanes::repeat(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  for (int x = 0; x < width; x += kPixels) {
    Vector sums[4] = {half, half, half, half};
    const uint8_t* at = middle + static_cast<int64_t>(x) * kMiddleBytes;
    for (int pair = 0; pair < axis.pairs; ++pair, at += 2 * middle_row) {
      const Vector upper = lanes::load(at), lower = lanes::load(at + middle_row), weight = lanes::fill(weights[pair]);
      const Vector low = lanes::low_bytes(upper, lower), high = lanes::high_bytes(upper, lower);
      sums[0] = lanes::add(sums[0], lanes::sums_of_pairs(lanes::low_bytes(low, none), weight));
      sums[1] = lanes::add(sums[1], lanes::sums_of_pairs(lanes::high_bytes(low, none), weight));
      sums[2] = lanes::add(sums[2], lanes::sums_of_pairs(lanes::low_bytes(high, none), weight));
      sums[3] = lanes::add(sums[3], lanes::sums_of_pairs(lanes::high_bytes(high, none), weight));
    }
    for (Vector& sum : sums) sum = lanes::shift_right(sum, axis.bits);
    const Vector pixels = lanes::to_bytes(sums[0], sums[1], sums[2], sums[3]);
    alignas(kVectorBytes) uint8_t colours[kVectorBytes];
    lanes::store(colours, lanes::gather_groups(lanes::shuffle(pixels, by_colour)));
    const int count = std::min(kPixels, width - x);
    for (int colour = 0; colour < 3; ++colour) {
      std::memcpy(planes[colour] + x, colours + colour * kPixels, count);
    }
  }
}

bool resize_window(const ResizeRequest& request) {
  const Axis across({request.first_column, request.columns, request.image_width, request.whole_width, request.left,
                     request.width});
  const Axis down({request.first_row, request.rows, request.image_height, request.whole_height, request.top,
                   request.height});
  if (!across.is_given || !down.is_given) return false;
  Source source(request, across);
  const int64_t vectors = (static_cast<int64_t>(request.width) * kMiddleBytes + kVectorBytes - 1) / kVectorBytes;
  const int64_t middle_row = vectors * kVectorBytes;
  // rows of weight 0 behind the last are read too, and groups of kLanes written whole
  const int64_t middle_rows = static_cast<int64_t>(request.rows) + 2 * down.pairs + kLanes;
  const std::unique_ptr<uint8_t[]> middle(new uint8_t[middle_rows * middle_row]);
  int done = down.first[0];
  for (int y = 0; y < request.height; ++y) {
    const int needed = std::min(down.first[y] + 2 * down.pairs, request.rows);
    for (; done < needed; done += kLanes) {
      const uint8_t* rows[kLanes];
      uint8_t* targets[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        rows[lane] = source.row(std::min(done + lane, request.rows - 1), lane);
        targets[lane] = &middle[(done + lane) * middle_row];
      }
      resize_across(rows, across, request.mirror != 0, targets);
    }
    uint8_t* planes[3];
    for (int colour = 0; colour < 3; ++colour) {
      planes[colour] = request.output + (static_cast<int64_t>(colour) * request.height + y) * request.width;
    }
    resize_down(&middle[down.first[y] * middle_row], middle_row,
                &down.pair_weights[static_cast<size_t>(y) * down.pairs], down, request.width, planes);
  }
  return true;
}

}  // namespace

extern "C" int resizes() { return 1; }

extern "C" int resize(const ResizeRequest* request) {
  try {
    return resize_window(*request);
  } catch (const std::exception&) {  // std::bad_alloc
    return 0;
  }
}

#else

extern "C" int resizes() { return 0; }

extern "C" int resize(const ResizeRequest*) { return 0; }

#endif
