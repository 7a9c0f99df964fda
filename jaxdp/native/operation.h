// The oneDNN primitives for a convolution: images are [B, H, W, C], kernels [height, width, C, D].

#pragma once

#include <cstdint>
#include <utility>

#include "oneapi/dnnl/dnnl.hpp"

namespace jaxdp {

using dnnl::memory;

enum class Wanted : int64_t { kOutput, kInputGradient, kKernelGradient };

inline const dnnl::engine& cpu() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

struct Shapes {
  memory::data_type type;
  memory::dims x, kernel, y, strides, before, behind;
};

// Computes the output or one of the gradients of a convolution. A 1x1 convolution without strides and padding is a
// matrix product over pixels. Any other is a oneDNN convolution, with the kernel layout that is fastest for it.
struct Operation {
  dnnl::primitive primitive;
  dnnl::reorder reorder;
  memory::desc x, kernel, ordered_kernel, y;
  memory::desc scratch, reorder_scratch;
  int as_x, as_kernel, as_y;

  Operation(Wanted wanted, const Shapes& shapes) {
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const memory::dims ones{1, 1}, zeros{0, 0}, window{shapes.kernel[2], shapes.kernel[3]};
    const bool is_product =
        window == ones && shapes.strides == ones && shapes.before == zeros && shapes.behind == zeros;
    is_product ? multiply(wanted, shapes) : convolve(wanted, shapes);
  }

 private:
  dnnl::primitive_attr attributes;

  void multiply(Wanted wanted, const Shapes& shapes) {
    const int64_t pixels = shapes.x[0] * shapes.x[2] * shapes.x[3], before = shapes.x[1], after = shapes.y[1];
    const auto matrix = [&](int64_t rows, int64_t columns) {
      return memory::desc({rows, columns}, shapes.type, memory::dims{columns, 1});
    };
    const auto turned = [&](int64_t rows, int64_t columns) {
      return memory::desc({rows, columns}, shapes.type, memory::dims{1, rows});
    };
    x = matrix(pixels, before);
    kernel = matrix(before, after);
    y = matrix(pixels, after);
    if (wanted == Wanted::kOutput) {
      take_product(x, kernel, y);
      as_x = DNNL_ARG_SRC, as_kernel = DNNL_ARG_WEIGHTS, as_y = DNNL_ARG_DST;
    } else if (wanted == Wanted::kInputGradient) {
      kernel = turned(after, before);
      take_product(y, kernel, x);
      as_y = DNNL_ARG_SRC, as_kernel = DNNL_ARG_WEIGHTS, as_x = DNNL_ARG_DST;
    } else {
      x = turned(before, pixels);
      take_product(x, y, kernel);
      as_x = DNNL_ARG_SRC, as_y = DNNL_ARG_WEIGHTS, as_kernel = DNNL_ARG_DST;
    }
  }

  void take_product(const memory::desc& left, const memory::desc& right, const memory::desc& product) {
    const dnnl::matmul::primitive_desc described(cpu(), left, right, product, attributes);
    take(dnnl::matmul(described), described, kernel);
  }

  void convolve(Wanted wanted, const Shapes& shapes) {
    using tag = memory::format_tag;
    const auto type = shapes.type;
    x = {shapes.x, type, tag::nhwc};
    y = {shapes.y, type, tag::nhwc};
    kernel = {shapes.kernel, type, tag::hwio};
    const memory::desc any(shapes.kernel, type, tag::any);
    const auto algorithm = dnnl::algorithm::convolution_direct;
    const dnnl::convolution_forward::primitive_desc forward(cpu(), dnnl::prop_kind::forward_training, algorithm, x, any,
                                                            y, shapes.strides, shapes.before, shapes.behind,
                                                            attributes);
    as_x = DNNL_ARG_SRC, as_kernel = DNNL_ARG_WEIGHTS, as_y = DNNL_ARG_DIFF_DST;
    if (wanted == Wanted::kOutput) {
      take(dnnl::convolution_forward(forward), forward, forward.weights_desc());
      as_y = DNNL_ARG_DST;
    } else if (wanted == Wanted::kInputGradient) {
      const dnnl::convolution_backward_data::primitive_desc backward(cpu(), algorithm, x, any, y, shapes.strides,
                                                                     shapes.before, shapes.behind, forward, attributes);
      take(dnnl::convolution_backward_data(backward), backward, backward.weights_desc());
      as_x = DNNL_ARG_DIFF_SRC;
    } else {
      const dnnl::convolution_backward_weights::primitive_desc backward(
          cpu(), algorithm, x, any, y, shapes.strides, shapes.before, shapes.behind, forward, attributes);
      take(dnnl::convolution_backward_weights(backward), backward, backward.diff_weights_desc());
      as_kernel = DNNL_ARG_DIFF_WEIGHTS;
    }
    const bool comes_out = wanted == Wanted::kKernelGradient;
    const dnnl::reorder::primitive_desc between(cpu(), comes_out ? ordered_kernel : kernel, cpu(),
                                                comes_out ? kernel : ordered_kernel, attributes);
    reorder = dnnl::reorder(between);
    reorder_scratch = between.scratchpad_desc();
  }

  void take(dnnl::primitive made, const dnnl::primitive_desc& described, memory::desc ordered) {
    primitive = std::move(made);
    scratch = described.scratchpad_desc();
    ordered_kernel = std::move(ordered);
  }
};

}  // namespace jaxdp
