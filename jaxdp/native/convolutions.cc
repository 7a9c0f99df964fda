// Convolutions of XLA's programs on CPUs, by oneDNN: images are [B, H, W, C], kernels [height, width, C, D].

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "oneapi/dnnl/dnnl.hpp"
#include "oneapi/tbb/task_arena.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using dnnl::memory;

constexpr size_t kAlignment = 64;

enum class Wanted : int64_t { kOutput, kInputGradient, kKernelGradient };

const dnnl::engine& cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

struct Shapes {
  memory::data_type type;
  memory::dims x, kernel, y, strides, before, behind;
};

// What computes one of the three, with the order of a kernel's elements in which that is fastest.
struct Convolution {
  dnnl::primitive primitive;
  dnnl::reorder reorder;
  memory::desc x, kernel, ordered_kernel, y;
  memory::desc scratch, reorder_scratch;

  Convolution(Wanted wanted, const Shapes& shapes) {
    using tag = memory::format_tag;
    const auto type = shapes.type;
    x = {shapes.x, type, tag::nhwc};
    y = {shapes.y, type, tag::nhwc};
    kernel = {shapes.kernel, type, tag::hwio};
    const memory::desc any(shapes.kernel, type, tag::any);
    const auto algorithm = dnnl::algorithm::convolution_direct;
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const dnnl::convolution_forward::primitive_desc forward(cpu(), dnnl::prop_kind::forward_training, algorithm, x, any,
                                                            y, shapes.strides, shapes.before, shapes.behind,
                                                            attributes);
    if (wanted == Wanted::kOutput) {
      take(dnnl::convolution_forward(forward), forward, forward.weights_desc());
    } else if (wanted == Wanted::kInputGradient) {
      const dnnl::convolution_backward_data::primitive_desc backward(cpu(), algorithm, x, any, y, shapes.strides,
                                                                     shapes.before, shapes.behind, forward, attributes);
      take(dnnl::convolution_backward_data(backward), backward, backward.weights_desc());
    } else {
      const dnnl::convolution_backward_weights::primitive_desc backward(
          cpu(), algorithm, x, any, y, shapes.strides, shapes.before, shapes.behind, forward, attributes);
      take(dnnl::convolution_backward_weights(backward), backward, backward.diff_weights_desc());
    }
    const bool comes_out = wanted == Wanted::kKernelGradient;
    const dnnl::reorder::primitive_desc between(cpu(), comes_out ? ordered_kernel : kernel, cpu(),
                                                comes_out ? kernel : ordered_kernel, attributes);
    reorder = dnnl::reorder(between);
    reorder_scratch = between.scratchpad_desc();
  }

 private:
  void take(dnnl::primitive made, const dnnl::primitive_desc& described, memory::desc ordered) {
    primitive = std::move(made);
    scratch = described.scratchpad_desc();
    ordered_kernel = std::move(ordered);
  }
};

// So many threads, and what has been made for them. Calls may meet here: no more threads are at work for that, and
// primitives have no memory of their own.
class Threads {
 public:
  static Threads& of(int64_t number) {
    static std::mutex mutex;
    static std::map<int64_t, Threads> all;
    std::lock_guard lock(mutex);
    return all.try_emplace(number, number).first->second;
  }

  explicit Threads(int64_t number) : arena(static_cast<int>(number)) {}

  template <typename Function>
  void run(const Function& function) {
    arena.execute(function);
  }

  const Convolution& find(Wanted wanted, const Shapes& shapes) {
    std::vector<int64_t> key{static_cast<int64_t>(wanted), static_cast<int64_t>(shapes.type)};
    for (const auto* dims : {&shapes.x, &shapes.kernel, &shapes.y, &shapes.strides, &shapes.before, &shapes.behind}) {
      key.insert(key.end(), dims->begin(), dims->end());
    }
    std::lock_guard lock(mutex);
    auto& found = convolutions[key];
    if (found == nullptr) found = std::make_unique<Convolution>(wanted, shapes);
    return *found;
  }

 private:
  tbb::task_arena arena;
  std::mutex mutex;
  std::map<std::vector<int64_t>, std::unique_ptr<Convolution>> convolutions;
};

// Memory of one call. It is handed on from call to call, as fresh memory costs page faults; so there are as many as
// calls at a time.
class Room {
 public:
  Room() {
    std::lock_guard lock(mutex);
    if (!left.empty()) {
      block = std::move(left.back());
      left.pop_back();
    }
  }

  ~Room() {
    std::lock_guard lock(mutex);
    left.push_back(std::move(block));
  }

  char* of(size_t bytes) {
    if (block.bytes < bytes) {
      auto* const made = static_cast<char*>(std::aligned_alloc(kAlignment, bytes));
      if (made == nullptr) throw std::bad_alloc();
      block.data.reset(made);
      block.bytes = bytes;
    }
    return block.data.get();
  }

 private:
  struct Block {
    std::unique_ptr<char, void (*)(void*)> data{nullptr, std::free};
    size_t bytes = 0;
  };

  inline static std::mutex mutex;
  inline static std::vector<Block> left;
  Block block;
};

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

memory::dims image_dims(ffi::AnyBuffer::Dimensions dims) { return {dims[0], dims[3], dims[1], dims[2]}; }

memory::dims kernel_dims(ffi::AnyBuffer::Dimensions dims) { return {dims[3], dims[2], dims[0], dims[1]}; }

void run(Wanted wanted, ffi::AnyBuffer x, ffi::AnyBuffer kernel, ffi::AnyBuffer y, ffi::Span<const int64_t> strides,
         ffi::Span<const int64_t> pads, Threads& threads) {
  const Shapes shapes{x.element_type() == ffi::BF16 ? memory::data_type::bf16 : memory::data_type::f32,
                      image_dims(x.dimensions()),
                      kernel_dims(kernel.dimensions()),
                      image_dims(y.dimensions()),
                      {strides[0], strides[1]},
                      {pads[0], pads[2]},
                      {pads[1], pads[3]}};
  const Convolution& convolution = threads.find(wanted, shapes);
  const size_t ordered_bytes = aligned(convolution.ordered_kernel.get_size());
  const size_t scratch_bytes =
      aligned(std::max(convolution.scratch.get_size(), convolution.reorder_scratch.get_size()));
  Room room;
  char* const begin = room.of(ordered_bytes + scratch_bytes);
  thread_local dnnl::stream stream(cpu());
  memory of_x(convolution.x, cpu(), x.untyped_data());
  memory of_y(convolution.y, cpu(), y.untyped_data());
  memory as_given(convolution.kernel, cpu(), kernel.untyped_data());
  memory ordered(convolution.ordered_kernel, cpu(), begin);
  const memory scratch(convolution.scratch, cpu(), begin + ordered_bytes);
  const memory reorder_scratch(convolution.reorder_scratch, cpu(), begin + ordered_bytes);
  const bool reorders = convolution.ordered_kernel != convolution.kernel;
  if (!reorders) ordered = as_given;
  const auto reorder = [&](const memory& from, const memory& to) {
    convolution.reorder.execute(stream,
                                {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}, {DNNL_ARG_SCRATCHPAD, reorder_scratch}});
  };
  const bool comes_out = wanted == Wanted::kKernelGradient;
  if (reorders && !comes_out) reorder(as_given, ordered);
  convolution.primitive.execute(stream, {{wanted == Wanted::kInputGradient ? DNNL_ARG_DIFF_SRC : DNNL_ARG_SRC, of_x},
                                         {comes_out ? DNNL_ARG_DIFF_WEIGHTS : DNNL_ARG_WEIGHTS, ordered},
                                         {wanted == Wanted::kOutput ? DNNL_ARG_DST : DNNL_ARG_DIFF_DST, of_y},
                                         {DNNL_ARG_SCRATCHPAD, scratch}});
  if (reorders && comes_out) reorder(ordered, as_given);
}

// Two of x, kernel and y come in, in this order; the third, which is wanted, comes out.
ffi::Error serve(int64_t wanted, ffi::AnyBuffer first, ffi::AnyBuffer second, ffi::Result<ffi::AnyBuffer> out,
                 ffi::Span<const int64_t> strides, ffi::Span<const int64_t> pads, int64_t threads) {
  try {
    auto& ours = Threads::of(threads);
    ours.run([&] {
      switch (const auto what = static_cast<Wanted>(wanted)) {
        case Wanted::kOutput:
          return run(what, first, second, *out, strides, pads, ours);
        case Wanted::kInputGradient:
          return run(what, *out, first, second, strides, pads, ours);
        case Wanted::kKernelGradient:
          return run(what, first, *out, second, strides, pads, ours);
      }
    });
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("a convolution by oneDNN failed: ") + error.what());
  }
  return ffi::Error::Success();
}

}  // namespace

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdp_xla_convolution, serve,
                              ffi::Ffi::Bind()
                                  .Attr<int64_t>("wanted")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<ffi::Span<const int64_t>>("strides")
                                  .Attr<ffi::Span<const int64_t>>("pads")
                                  .Attr<int64_t>("threads"));

extern "C" {

// Whether oneDNN has convolutions in bfloat16 for this CPU.
bool jaxdp_has_bfloat16() {
  const auto needed = static_cast<unsigned>(dnnl::cpu_isa::avx512_core);
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & needed) == needed;
}
}
#pragma GCC visibility pop
