// Max pooling of XLA's programs on CPUs: images are [B, H, W, C], float32 or bfloat16.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "threads.h"
#include "vectorised.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using jaxdp::number;
using jaxdp::put;

// A thread takes so many channels of an image at once.
constexpr int64_t kChannelsAtOnce = 64;

struct Work {
  bool is_bfloat16;
  int64_t images, height, width, channels;  // before
  int64_t rows, columns;                    // after
  int64_t tall, wide, down, across;         // window and strides
  int64_t above, before;                    // padding
  const void *x, *y, *gradient;             // the latter two where the gradient of x is wanted
  void* out;

  int64_t blocks() const { return (channels + kChannelsAtOnce - 1) / kChannelsAtOnce; }
};

// Some channels of all pixels of an image.
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
    // NaN is taken, and stays.
    largest[c] = value <= largest[c] || largest[c] != largest[c] ? largest[c] : value;
  }
}

// The gradient goes to the first that is as large, where nothing is left of it then.
template <typename T>
[[gnu::always_inline]] inline void give(const T* __restrict x, const T* __restrict y, int64_t channels,
                                        float* __restrict left, T* __restrict out) {
  for (int64_t c = 0; c < channels; ++c) {
    const float had = number(out[c]), more = left[c];
    const bool is_it = number(x[c]) == number(y[c]);
    put(is_it ? had + more : had, out[c]);
    left[c] = is_it ? 0 : more;
  }
}

template <typename T>
[[gnu::always_inline]] inline void do_channels(const Work& work, int64_t part) {
  const int64_t image = part / work.blocks(), channel = part % work.blocks() * kChannelsAtOnce;
  const int64_t channels = std::min(kChannelsAtOnce, work.channels - channel);
  const auto before = [&](auto* array) {
    return Image<std::remove_pointer_t<decltype(array)>>{
        array + image * work.height * work.width * work.channels + channel, work.width, work.channels};
  };
  const auto after = [&](auto* array) {
    return Image<std::remove_pointer_t<decltype(array)>>{
        array + image * work.rows * work.columns * work.channels + channel, work.columns, work.channels};
  };
  const bool is_gradient = work.gradient != nullptr;
  const auto x = before(static_cast<const T*>(work.x));
  if (is_gradient) {
    const auto out = before(static_cast<T*>(work.out));
    for (int64_t row = 0; row < work.height; ++row) {
      for (int64_t column = 0; column < work.width; ++column) std::fill_n(out.at(row, column), channels, T{0});
    }
  }
  for (int64_t row = 0; row < work.rows; ++row) {
    for (int64_t column = 0; column < work.columns; ++column) {
      float values[kChannelsAtOnce];
      if (is_gradient) {
        const T* const gradient = after(static_cast<const T*>(work.gradient)).at(row, column);
        for (int64_t c = 0; c < channels; ++c) values[c] = number(gradient[c]);
      } else {
        std::fill_n(values, channels, -std::numeric_limits<float>::infinity());
      }
      const int64_t top = row * work.down - work.above, left = column * work.across - work.before;
      for (int64_t i = std::max<int64_t>(0, top); i < std::min(work.height, top + work.tall); ++i) {
        for (int64_t j = std::max<int64_t>(0, left); j < std::min(work.width, left + work.wide); ++j) {
          if (is_gradient) {
            const T* const y = after(static_cast<const T*>(work.y)).at(row, column);
            give(x.at(i, j), y, channels, values, before(static_cast<T*>(work.out)).at(i, j));
          } else {
            take_larger(x.at(i, j), channels, values);
          }
        }
      }
      if (!is_gradient) {
        T* const y = after(static_cast<T*>(work.out)).at(row, column);
        for (int64_t c = 0; c < channels; ++c) put(values[c], y[c]);
      }
    }
  }
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

}  // namespace

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdp_xla_max_pool, forward,
                              ffi::Ffi::Bind()
                                  .Arg<Images>()
                                  .Ret<Images>()
                                  .Attr<Integers>("window")
                                  .Attr<Integers>("strides")
                                  .Attr<Integers>("pads")
                                  .Ctx<ffi::ThreadPool>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdp_xla_max_pool_gradient, gradient,
                              ffi::Ffi::Bind()
                                  .Arg<Images>()
                                  .Arg<Images>()
                                  .Arg<Images>()
                                  .Ret<Images>()
                                  .Attr<Integers>("window")
                                  .Attr<Integers>("strides")
                                  .Attr<Integers>("pads")
                                  .Ctx<ffi::ThreadPool>());
#pragma GCC visibility pop
