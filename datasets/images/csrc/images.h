// What Python calls: datasets/images/native.py declares the same structures.
#pragma once

#include <cstdint>

extern "C" {

struct WindowRequest {
  const uint8_t* content;
  int64_t content_bytes;
  int32_t image_height, image_width;  // as the header was read before: another size is refused
  int32_t shrink;                     // 1, 2, 4 or 8
  int32_t top, left, rows, columns;   // in the shrunken image
  uint8_t* output;                    // (rows, columns, 3)
};

struct ResizeRequest {
  const uint8_t* pixels;  // (rows, columns, 3), rows row_bytes apart: a part of an image, or all of it
  int64_t row_bytes;
  int32_t first_row, first_column, rows, columns;  // of the part, in the image
  int32_t image_height, image_width;
  int32_t whole_height, whole_width;  // to which the whole image is resized
  int32_t top, left, height, width;   // the window of that which is asked for
  int32_t mirror;
  uint8_t* output;  // (3, height, width)
};

// Names the library that decode_window calls; empty where it was built without.
const char* window_decoder();
// 1, or 0 for what it leaves to others.
int decode_window(const WindowRequest* request);

// 1 where resize has been built with the instructions that it needs.
int resizes();
// 1, or 0 where it cannot: without the instructions or memory, or for a part that lacks pixels of the window.
int resize(const ResizeRequest* request);
}
