// A window of a JPEG file, and nothing of the file that the window does not need.
//
// Rows above it are read without their inverse transforms, columns beside it are not transformed, and what is below it
// is not decoded at all: there, markers alone are looked at. Whatever is not a plain file (8 bits, one sequential scan,
// gray or colour, no warning of the library) is refused, for the caller's other decoders to judge.

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "images.h"

#if defined(WITH_JPEG)
#include <jpeglib.h>
#endif

// Older releases have faults in jpeg_crop_scanline and jpeg_skip_scanlines.
#if defined(WITH_JPEG) && defined(LIBJPEG_TURBO_VERSION_NUMBER) && LIBJPEG_TURBO_VERSION_NUMBER >= 2001000
#define DECODES_WINDOWS 1
#define TEXT(x) #x
#define TEXT_OF(x) TEXT(x)
#endif

namespace {

#if DECODES_WINDOWS

// Smooth chroma upsampling looks one sample, at most two pixels, to each side; columns of the decoder's own edges do so
// otherwise. The same for every file, and a multiple of what any needs.
constexpr JDIMENSION kMargin = 16;
constexpr int kEndOfImage = 0xD9, kFirstRestart = 0xD0, kLastRestart = 0xD7;

struct Errors {
  jpeg_error_mgr manager;
  std::jmp_buf refused;
};

[[noreturn]] void refuse(j_common_ptr decoder) {
  std::longjmp(reinterpret_cast<Errors*>(decoder->err)->refused, 1);
}

void refuse_warnings(j_common_ptr decoder, int level) {
  if (level < 0) refuse(decoder);
}

void say_nothing(j_common_ptr) {}

// Samplings whose results are the same in all releases: chroma whole, or halved or quartered in width, halved in height.
bool has_usual_sampling(const jpeg_decompress_struct& decoder) {
  const jpeg_component_info* parts = decoder.comp_info;
  if (decoder.num_components == 1) return true;  // gray: its numbers mean nothing
  const int h = parts[0].h_samp_factor, v = parts[0].v_samp_factor;
  const bool luma = (h == 1 || h == 2 || h == 4) && (v == 1 || v == 2) && !(h == 4 && v == 2);
  for (int part = 1; part < 3; ++part) {
    if (parts[part].h_samp_factor != 1 || parts[part].v_samp_factor != 1) return false;
  }
  return luma;
}

bool is_plain(jpeg_decompress_struct& decoder, const WindowRequest& request) {
  const bool gray = decoder.num_components == 1 && decoder.jpeg_color_space == JCS_GRAYSCALE;
  const bool colour = decoder.num_components == 3 &&
                      (decoder.jpeg_color_space == JCS_YCbCr || decoder.jpeg_color_space == JCS_RGB);
  return (gray || colour) && decoder.data_precision == 8 && !decoder.progressive_mode && !decoder.arith_code &&
         !jpeg_has_multiple_scans(&decoder) && has_usual_sampling(decoder) &&
         decoder.image_width == static_cast<JDIMENSION>(request.image_width) &&
         decoder.image_height == static_cast<JDIMENSION>(request.image_height);
}

// Whether nothing but entropy-coded data and restarts is left up to the end of the image. Then no decoder can find an
// error in it: at most it warns, and the rows above stay what they are.
bool ends_well(const jpeg_decompress_struct& decoder) {
  if (decoder.unread_marker == kEndOfImage) return true;
  if (decoder.unread_marker != 0 && (decoder.unread_marker < kFirstRestart || decoder.unread_marker > kLastRestart)) {
    return false;
  }
  const JOCTET* at = decoder.src->next_input_byte;
  const JOCTET* const end = at + decoder.src->bytes_in_buffer;
  while (at < end) {
    at = static_cast<const JOCTET*>(std::memchr(at, 0xFF, end - at));
    if (at == nullptr) return false;
    while (at < end && *at == 0xFF) ++at;
    if (at == end) return false;
    if (*at == kEndOfImage) return true;
    if (*at != 0 && (*at < kFirstRestart || *at > kLastRestart)) return false;
    ++at;
  }
  return false;
}

// Objects with destructors have no place here: refusals jump out of it.
bool decode(jpeg_decompress_struct& decoder, const WindowRequest& request) {
  jpeg_mem_src(&decoder, const_cast<uint8_t*>(request.content), request.content_bytes);
  if (jpeg_read_header(&decoder, TRUE) != JPEG_HEADER_OK || !is_plain(decoder, request)) return false;
  decoder.out_color_space = JCS_RGB;
  decoder.scale_num = 1;
  decoder.scale_denom = request.shrink;
  decoder.dct_method = JDCT_ISLOW;
  decoder.do_fancy_upsampling = TRUE;
  if (!jpeg_start_decompress(&decoder)) return false;
  const JDIMENSION top = request.top, left = request.left, rows = request.rows, columns = request.columns;
  if (top > decoder.output_height || rows > decoder.output_height - top || left > decoder.output_width ||
      columns > decoder.output_width - left) {
    return false;
  }
  JDIMENSION first = left > kMargin ? left - kMargin : 0;
  JDIMENSION width = decoder.output_width - first;
  if (width > left - first + columns + kMargin) width = left - first + columns + kMargin;
  if (width < decoder.output_width) jpeg_crop_scanline(&decoder, &first, &width);  // moves both to whole blocks
  if (first > left || first + width < left + columns) return false;
  // At an odd address: to even ones the library writes past the caches, from where a row would come back slowly.
  JSAMPROW line = static_cast<JSAMPROW>((*decoder.mem->alloc_large)(reinterpret_cast<j_common_ptr>(&decoder),
                                                                    JPOOL_IMAGE, 3 * decoder.output_width + 1)) + 1;
  if (top > 0 && jpeg_skip_scanlines(&decoder, top) != top) return false;
  for (JDIMENSION row = 0; row < rows; ++row) {
    if (jpeg_read_scanlines(&decoder, &line, 1) != 1) return false;
    std::memcpy(request.output + static_cast<size_t>(row) * columns * 3, line + 3 * (left - first), 3 * columns);
  }
  return ends_well(decoder);
}

#endif

}  // namespace

extern "C" const char* window_decoder() {
#if DECODES_WINDOWS
  return "libjpeg-turbo " TEXT_OF(LIBJPEG_TURBO_VERSION);
#else
  return "";
#endif
}

extern "C" int decode_window(const WindowRequest* request) {
#if DECODES_WINDOWS
  Errors errors;
  jpeg_decompress_struct decoder;
  std::memset(&decoder, 0, sizeof(decoder));
  decoder.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = refuse;
  errors.manager.emit_message = refuse_warnings;
  errors.manager.output_message = say_nothing;
  if (setjmp(errors.refused)) {
    jpeg_destroy_decompress(&decoder);
    return 0;
  }
  jpeg_create_decompress(&decoder);
  const bool decoded = decode(decoder, *request);
  jpeg_destroy_decompress(&decoder);
  return decoded;
#else
  return 0;
#endif
}
