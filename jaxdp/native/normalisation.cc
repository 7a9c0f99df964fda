// Batch normalisation for XLA programs on CPUs, fused with the shortcut and the ReLU that may follow it in a residual
// block.
//
// Arrays are [rows, C], float32 or bfloat16. Per-channel arrays are float32 [2, C]: sums (of x and of its square),
// factors (scale and shift of x), and their gradients.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "threads.h"
#include "vectorised.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using jaxdp::number;
using jaxdp::put;

// Number of values that a thread takes at once. It determines the order of summation; the number of threads does not.
constexpr int64_t kValuesAtOnce = int64_t{1} << 16;

// Number of rows processed together: each sum is read and written once for all of them.
constexpr int64_t kRowsAtOnce = 4;

enum class Task { kSums, kForward, kGradientSums, kGradient };

// Pointers that a task does not use are null.
struct Work {
  Task task;
  bool is_bfloat16, relu;
  int64_t rows, channels, rows_an_example;
  const bool* seen;      // per example, whether it counts in the sums
  const void* x;         // input of the normalisation
  const void* shortcut;  // added after the normalisation
  const void* y;         // output, if the ReLU follows a shortcut: it then does not follow from x alone
  const void* gradient;  // gradient of the output
  const float* factors;
  const float* of_sums;  // gradients of the sums
  void* out;

  int64_t rows_of_part() const { return std::max<int64_t>(1, kValuesAtOnce / channels); }
  int64_t parts() const { return (rows + rows_of_part() - 1) / rows_of_part(); }
};

template <int64_t kRows, typename T>
[[gnu::always_inline]] inline void add_sums(const T* __restrict x, int64_t channels, float* __restrict sums,
                                            float* __restrict squares) {
  for (int64_t c = 0; c < channels; ++c) {
    float sum = 0, square = 0;
    for (int64_t row = 0; row < kRows; ++row) {
      const float value = number(x[row * channels + c]);
      sum += value;
      square += value * value;
    }
    sums[c] += sum;
    squares[c] += square;
  }
}

template <bool kRelu, typename T>
[[gnu::always_inline]] inline void normalise(const T* __restrict x, const T* __restrict shortcut,
                                             const float* __restrict factor, const float* __restrict shift,
                                             int64_t channels, T* __restrict y) {
  for (int64_t c = 0; c < channels; ++c) {
    const float value = number(x[c]) * factor[c] + shift[c] + (shortcut == nullptr ? 0 : number(shortcut[c]));
    // Written so that NaN is kept.
    put(kRelu && value < 0 ? 0 : value, y[c]);
  }
}

// The gradient of the input of a ReLU, given its output.
template <typename T>
[[gnu::always_inline]] inline void relu_gradients(const T* __restrict y, const T* __restrict gradient, int64_t count,
                                                  T* __restrict out) {
  for (int64_t i = 0; i < count; ++i) {
    const T given = gradient[i];
    out[i] = number(y[i]) > 0 ? given : T{0};
  }
}

// The same for one value, given the input of the normalisation.
template <bool kRelu>
[[gnu::always_inline]] inline float relu_gradient(float value, float gradient, float factor, float shift) {
  return !kRelu || value * factor + shift > 0 ? gradient : 0;
}

template <int64_t kRows, bool kRelu, typename T>
[[gnu::always_inline]] inline void add_gradient_sums(const T* __restrict x, const T* __restrict gradient,
                                                     const float* __restrict factor, const float* __restrict shift,
                                                     int64_t channels, float* __restrict of_factor,
                                                     float* __restrict of_shift) {
  for (int64_t c = 0; c < channels; ++c) {
    float product = 0, sum = 0;
    for (int64_t row = 0; row < kRows; ++row) {
      const float value = number(x[row * channels + c]);
      const float given = number(gradient[row * channels + c]);
      const float passed = relu_gradient<kRelu>(value, given, factor[c], shift[c]);
      product += passed * value;
      sum += passed;
    }
    of_factor[c] += product;
    of_shift[c] += sum;
  }
}

template <bool kRelu, typename T>
[[gnu::always_inline]] inline void gradient_of_x(const T* __restrict x, const T* __restrict gradient,
                                                 const float* __restrict factor, const float* __restrict shift,
                                                 const float* __restrict of_sum, const float* __restrict of_square,
                                                 float weight, int64_t channels, T* __restrict out) {
  for (int64_t c = 0; c < channels; ++c) {
    const float value = number(x[c]);
    const float passed = relu_gradient<kRelu>(value, number(gradient[c]), factor[c], shift[c]);
    put(passed * factor[c] + weight * (of_sum[c] + 2 * value * of_square[c]), out[c]);
  }
}

template <int64_t kRows, bool kRelu, typename T>
[[gnu::always_inline]] inline void do_some(const Work& work, int64_t first_row, bool seen, float* sums) {
  const int64_t channels = work.channels;
  const auto row_of = [&](const void* array, int64_t row) {
    return array == nullptr ? nullptr : static_cast<const T*>(array) + (first_row + row) * channels;
  };
  const T *const x = row_of(work.x, 0), *const gradient = row_of(work.gradient, 0);
  const float *const factor = work.factors, *const shift = factor + channels;
  auto* const out = work.out == nullptr ? nullptr : static_cast<T*>(work.out) + first_row * channels;
  switch (work.task) {
    case Task::kSums:
      if (seen) add_sums<kRows>(x, channels, sums, sums + channels);
      break;
    case Task::kForward:
      for (int64_t row = 0; row < kRows; ++row) {
        const T* const shortcut = row_of(work.shortcut, row);
        T* const y = out + row * channels;
        if (shortcut == nullptr) {
          normalise<kRelu, T>(row_of(work.x, row), nullptr, factor, shift, channels, y);
        } else {
          normalise<kRelu>(row_of(work.x, row), shortcut, factor, shift, channels, y);
        }
      }
      break;
    case Task::kGradientSums:
      if (work.y != nullptr) {
        relu_gradients(row_of(work.y, 0), gradient, kRows * channels, out);
        add_gradient_sums<kRows, false>(x, out, factor, shift, channels, sums, sums + channels);
      } else {
        add_gradient_sums<kRows, kRelu>(x, gradient, factor, shift, channels, sums, sums + channels);
      }
      break;
    case Task::kGradient:
      for (int64_t row = 0; row < kRows; ++row) {
        gradient_of_x<kRelu>(row_of(work.x, row), row_of(work.gradient, row), factor, shift, work.of_sums,
                             work.of_sums + channels, seen ? 1 : 0, channels, out + row * channels);
      }
      break;
  }
}

template <bool kRelu, typename T>
[[gnu::always_inline]] inline void do_rows(const Work& work, int64_t begin, int64_t end, float* sums) {
  for (int64_t row = begin; row < end;) {
    const int64_t example = row / work.rows_an_example;
    const int64_t until = std::min(end, (example + 1) * work.rows_an_example);
    const bool seen = work.seen == nullptr || work.seen[example];
    for (; row + kRowsAtOnce <= until; row += kRowsAtOnce) do_some<kRowsAtOnce, kRelu, T>(work, row, seen, sums);
    for (; row < until; ++row) do_some<1, kRelu, T>(work, row, seen, sums);
  }
}

JAXDP_VECTORISED void do_part(const Work& work, int64_t begin, int64_t end, float* sums) {
  if (work.is_bfloat16) {
    work.relu ? do_rows<true, uint16_t>(work, begin, end, sums) : do_rows<false, uint16_t>(work, begin, end, sums);
  } else {
    work.relu ? do_rows<true, float>(work, begin, end, sums) : do_rows<false, float>(work, begin, end, sums);
  }
}

// `sums` is null if the task has no sums.
ffi::Error run(const Work& work, ffi::ThreadPool& pool, float* sums) {
  const int64_t step = work.rows_of_part(), width = 2 * work.channels;
  std::vector<float> of_parts(sums == nullptr ? 0 : work.parts() * width);
  jaxdp::share(pool, work.parts(), [&](int64_t part) {
    do_part(work, part * step, std::min(work.rows, (part + 1) * step),
            sums == nullptr ? nullptr : of_parts.data() + part * width);
  });
  for (int64_t c = 0; sums != nullptr && c < width; ++c) {
    double total = 0;
    for (int64_t part = 0; part < work.parts(); ++part) total += of_parts[part * width + c];
    sums[c] = static_cast<float>(total);
  }
  return ffi::Error::Success();
}

using Array = ffi::AnyBuffer;
using Channels = ffi::BufferR2<ffi::F32>;
using Mask = ffi::BufferR1<ffi::PRED>;

Work work_on(Task task, Array x, int64_t examples) {
  Work work{};
  work.task = task;
  work.is_bfloat16 = x.element_type() == ffi::BF16;
  work.channels = std::max<int64_t>(1, x.dimensions().back());
  work.rows = static_cast<int64_t>(x.element_count()) / work.channels;
  work.rows_an_example = std::max<int64_t>(1, work.rows / std::max<int64_t>(1, examples));
  work.x = x.untyped_data();
  return work;
}

ffi::Error sums(Array x, Mask seen, ffi::Result<Channels> out, ffi::ThreadPool pool) {
  Work work = work_on(Task::kSums, x, seen.dimensions()[0]);
  work.seen = seen.typed_data();
  return run(work, pool, out->typed_data());
}

ffi::Error forward(Array x, Channels factors, ffi::RemainingArgs shortcut, ffi::Result<Array> y, bool relu,
                   ffi::ThreadPool pool) {
  Work work = work_on(Task::kForward, x, 1);
  work.factors = factors.typed_data();
  work.relu = relu;
  if (shortcut.size() > 0) work.shortcut = shortcut.get<Array>(0)->untyped_data();
  work.out = y->untyped_data();
  return run(work, pool, nullptr);
}

// With y, also returns the gradient of the input of the ReLU.
ffi::Error gradient_sums(Array x, Channels factors, Array gradient, ffi::RemainingArgs y, ffi::Result<Channels> out,
                         ffi::RemainingRets of_shortcut, bool relu, ffi::ThreadPool pool) {
  Work work = work_on(Task::kGradientSums, x, 1);
  work.factors = factors.typed_data();
  work.gradient = gradient.untyped_data();
  work.relu = relu;
  if (y.size() > 0) {
    work.y = y.get<Array>(0)->untyped_data();
    work.out = (*of_shortcut.get<Array>(0))->untyped_data();
  }
  return run(work, pool, out->typed_data());
}

ffi::Error gradient(Array x, Channels factors, Array gradient, Channels of_sums, Mask seen, ffi::Result<Array> out,
                    bool relu, ffi::ThreadPool pool) {
  Work work = work_on(Task::kGradient, x, seen.dimensions()[0]);
  work.seen = seen.typed_data();
  work.factors = factors.typed_data();
  work.of_sums = of_sums.typed_data();
  work.gradient = gradient.untyped_data();
  work.relu = relu;
  work.out = out->untyped_data();
  return run(work, pool, nullptr);
}

}  // namespace

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdp_xla_norm_sums, sums,
                              ffi::Ffi::Bind().Arg<Array>().Arg<Mask>().Ret<Channels>().Ctx<ffi::ThreadPool>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdp_xla_norm, forward,
                              ffi::Ffi::Bind()
                                  .Arg<Array>()
                                  .Arg<Channels>()
                                  .RemainingArgs()
                                  .Ret<Array>()
                                  .Attr<bool>("relu")
                                  .Ctx<ffi::ThreadPool>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdp_xla_norm_gradient_sums, gradient_sums,
                              ffi::Ffi::Bind()
                                  .Arg<Array>()
                                  .Arg<Channels>()
                                  .Arg<Array>()
                                  .RemainingArgs()
                                  .Ret<Channels>()
                                  .RemainingRets()
                                  .Attr<bool>("relu")
                                  .Ctx<ffi::ThreadPool>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdp_xla_norm_gradient, gradient,
                              ffi::Ffi::Bind()
                                  .Arg<Array>()
                                  .Arg<Channels>()
                                  .Arg<Array>()
                                  .Arg<Channels>()
                                  .Arg<Mask>()
                                  .Ret<Array>()
                                  .Attr<bool>("relu")
                                  .Ctx<ffi::ThreadPool>());
#pragma GCC visibility pop
