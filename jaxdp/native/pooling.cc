// Max pooling for XLA programs on CPUs: images are [B, H, W, C], float32 or bfloat16.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "threads.h"
#include "vectorised.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using jaxdp::number;
using jaxdp::put;

// Number of channels of an image that a thread takes at once.
constexpr int64_t kChannelsAtOnce = 64;

struct Work {
  bool is_bfloat16;
  int64_t images, height, width, channels;  // size of the input
  int64_t rows, columns;                    // size of the output
  int64_t tall, wide, down, across;         // window and strides
  int64_t above, before;                    // padding
  const void *x, *y, *gradient;             // y and its gradient are set only to compute the gradient of x
  void* out;

  int64_t blocks() const { return (channels + kChannelsAtOnce - 1) / kChannelsAtOnce; }
};

// A block of channels of all pixels of an image.
template <typename T>
struct Image {
  T* first;
  int64_t width, channels;

  [[gnu::always_inline]] T* at(int64_t row, int64_t column) const { return first + (row * width + column) * channels; }
};

template <typename T>
[[gnu::always_inline]] inline void take_larger(const T* __restrict x, int64_t channels, float* __restrict largest) {
  for (int64_t c = 0; c < channels; ++c) {
    const float value = number(x[c]);
    // NaN counts as larger than any number, and is kept.
    largest[c] = value <= largest[c] || largest[c] != largest[c] ? largest[c] : value;
  }
}

// Gives the gradient to the first pixel that equals the maximum; nothing is left for later pixels.
template <typename T>
[[gnu::always_inline]] inline void give(const T* __restrict x, const T* __restrict y, int64_t channels,
                                        float* __restrict left, T* __restrict out) {
  for (int64_t c = 0; c < channels; ++c) {
    const float had = number(out[c]), more = left[c];
    const bool is_it = number(x[c]) == number(y[c]);
    put(had + (is_it ? more : 0), out[c]);
    left[c] = is_it ? 0 : more;
  }
}

// The channels from `channel` on of the pixels of an image: of the input, and of the output.
template <typename T>
[[gnu::always_inline]] inline Image<T> before(const Work& work, T* array, int64_t image, int64_t channel) {
  return {array + image * work.height * work.width * work.channels + channel, work.width, work.channels};
}

template <typename T>
[[gnu::always_inline]] inline Image<T> after(const Work& work, T* array, int64_t image, int64_t channel) {
  return {array + image * work.rows * work.columns * work.channels + channel, work.columns, work.channels};
}

// Visits the input pixels in the window of one output pixel, row by row.
template <typename Visit>
[[gnu::always_inline]] inline void visit_window(const Work& work, int64_t row, int64_t column, const Visit& visit) {
  const int64_t top = row * work.down - work.above, left = column * work.across - work.before;
  for (int64_t i = std::max<int64_t>(0, top); i < std::min(work.height, top + work.tall); ++i) {
    for (int64_t j = std::max<int64_t>(0, left); j < std::min(work.width, left + work.wide); ++j) visit(i, j);
  }
}

template <typename T>
[[gnu::always_inline]] inline void pool(const Work& work, int64_t image, int64_t channel, int64_t channels) {
  const auto x = before(work, static_cast<const T*>(work.x), image, channel);
  const auto y = after(work, static_cast<T*>(work.out), image, channel);
  for (int64_t row = 0; row < work.rows; ++row) {
    for (int64_t column = 0; column < work.columns; ++column) {
      float largest[kChannelsAtOnce];
      std::fill_n(largest, channels, -std::numeric_limits<float>::infinity());
      visit_window(work, row, column, [&](int64_t i, int64_t j) { take_larger(x.at(i, j), channels, largest); });
      T* const out = y.at(row, column);
      for (int64_t c = 0; c < channels; ++c) put(largest[c], out[c]);
    }
  }
}

template <typename T>
[[gnu::always_inline]] inline void spread(const Work& work, int64_t image, int64_t channel, int64_t channels) {
  const auto x = before(work, static_cast<const T*>(work.x), image, channel);
  const auto out = before(work, static_cast<T*>(work.out), image, channel);
  const auto y = after(work, static_cast<const T*>(work.y), image, channel);
  const auto gradient = after(work, static_cast<const T*>(work.gradient), image, channel);
  for (int64_t row = 0; row < work.height; ++row) {
    for (int64_t column = 0; column < work.width; ++column) std::fill_n(out.at(row, column), channels, T{0});
  }
  for (int64_t row = 0; row < work.rows; ++row) {
    for (int64_t column = 0; column < work.columns; ++column) {
      float rest[kChannelsAtOnce];
      const T* const given = gradient.at(row, column);
      for (int64_t c = 0; c < channels; ++c) rest[c] = number(given[c]);
      visit_window(work, row, column,
                   [&](int64_t i, int64_t j) { give(x.at(i, j), y.at(row, column), channels, rest, out.at(i, j)); });
    }
  }
}

template <typename T>
[[gnu::always_inline]] inline void do_channels(const Work& work, int64_t part) {
  const int64_t image = part / work.blocks(), channel = part % work.blocks() * kChannelsAtOnce;
  const int64_t channels = std::min(kChannelsAtOnce, work.channels - channel);
  work.gradient == nullptr ? pool<T>(work, image, channel, channels) : spread<T>(work, image, channel, channels);
}

JAXDP_VECTORISED void do_part(const Work& work, int64_t part) {
  work.is_bfloat16 ? do_channels<uint16_t>(work, part) : do_channels<float>(work, part);
}

using Images = ffi::AnyBuffer;
using Integers = ffi::Span<const int64_t>;

Work work_on(Images x, Images::Dimensions after, Integers window, Integers strides, Integers pads) {
  const auto size = x.dimensions();
  Work work{};
  work.is_bfloat16 = x.element_type() == ffi::BF16;
  work.images = size[0], work.height = size[1], work.width = size[2], work.channels = size[3];
  work.rows = after[1], work.columns = after[2];
  work.tall = window[0], work.wide = window[1], work.down = strides[0], work.across = strides[1];
  work.above = pads[0], work.before = pads[2];
  work.x = x.untyped_data();
  return work;
}

ffi::Error run(const Work& work, ffi::ThreadPool& pool) {
  jaxdp::share(pool, work.images * work.blocks(), [&](int64_t part) { do_part(work, part); });
  return ffi::Error::Success();
}

ffi::Error forward(Images x, ffi::Result<Images> y, Integers window, Integers strides, Integers pads,
                   ffi::ThreadPool pool) {
  Work work = work_on(x, y->dimensions(), window, strides, pads);
  work.out = y->untyped_data();
  return run(work, pool);
}

ffi::Error gradient(Images x, Images y, Images gradient, ffi::Result<Images> out, Integers window, Integers strides,
                    Integers pads, ffi::ThreadPool pool) {
  Work work = work_on(x, y.dimensions(), window, strides, pads);
  work.y = y.untyped_data();
  work.gradient = gradient.untyped_data();
  work.out = out->untyped_data();
  return run(work, pool);
}

// Adds the attributes and the context that follow the arrays.
template <typename Binding>
auto with_window(Binding binding) {
  return std::move(binding)
      .template Attr<Integers>("window")
      .template Attr<Integers>("strides")
      .template Attr<Integers>("pads")
      .template Ctx<ffi::ThreadPool>();
}

}  // namespace

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdp_xla_max_pool, forward, with_window(ffi::Ffi::Bind().Arg<Images>().Ret<Images>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdp_xla_max_pool_gradient, gradient,
                              with_window(ffi::Ffi::Bind().Arg<Images>().Arg<Images>().Arg<Images>().Ret<Images>()));
#pragma GCC visibility pop
