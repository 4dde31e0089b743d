// Causal depthwise convolution and SiLU, forward and backward, on channels-last tensors.
//
// Token after token, all of a task's channels in a row. Nothing is kept for the backward pass: the sum before the SiLU
// is computed again.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "sequence.h"

namespace vim {
namespace {

// The sum before the SiLU for the token met as the i-th: tap W - 1 multiplies the token itself, tap 0 the oldest.
// `rows` are the token's own and those of the W - 1 tokens before it, null where there are none.
template <typename scalar_t, int W>
VIM_INLINE Vec<scalar_t> convolve(
    const scalar_t* const* rows, const Vec<scalar_t>* taps, int64_t c, int count, Vec<scalar_t> total) {
  for (int back = 0; back < W; ++back) {
    if (rows[back]) total += taps[W - 1 - back] * load(rows[back] + c, count);
  }
  return total;
}

template <typename scalar_t, int W>
VIM_INLINE void find_rows(
    const Tasks& tasks, const Sequence<scalar_t>& x, int64_t image, int64_t i, const scalar_t** rows) {
  for (int back = 0; back < W; ++back) rows[back] = back <= i ? x.at(image, tasks.token(i - back)) : nullptr;
}

// Taps [blocks, W] and bias [blocks] of a task's channels, padded to whole vectors.
template <typename scalar_t, int W>
struct Filter {
  std::vector<Vec<scalar_t>> taps, bias;

  Filter(const Tasks& tasks, const scalar_t* weight, const scalar_t* from, int64_t first, int64_t last)
      : taps((last - first) * W), bias(last - first) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t c = block * Simd<scalar_t>::width;
      const int count = valid<scalar_t>(tasks, block);
      bias[block - first] = load(from + c, count);
      for (int k = 0; k < W; ++k) taps[(block - first) * W + k] = load(weight + k * tasks.channels + c, count);
    }
  }
};

template <typename scalar_t, int W>
void forward(
    const Tasks& tasks, const Sequence<scalar_t>& x, const scalar_t* weight, const scalar_t* bias,
    const Sequence<scalar_t>& out) {
  for_each_task(tasks, [&](int64_t image, int64_t, int64_t first, int64_t last) {
    const Filter<scalar_t, W> filter(tasks, weight, bias, first, last);
    const scalar_t* rows[W];
    for (int64_t i = 0; i < tasks.length; ++i) {
      find_rows<scalar_t, W>(tasks, x, image, i, rows);
      scalar_t* to = out.at(image, tasks.token(i));
      for (int64_t block = first; block < last; ++block) {
        const int64_t c = block * Simd<scalar_t>::width;
        const int count = valid<scalar_t>(tasks, block);
        const auto total = convolve<scalar_t, W>(
            rows, filter.taps.data() + (block - first) * W, c, count, filter.bias[block - first]);
        store(to + c, silu<scalar_t>(total).value, count);
      }
    }
  });
}

template <typename scalar_t, int W>
void backward(
    const Tasks& tasks, const Sequence<scalar_t>& grad, const Sequence<scalar_t>& x, const scalar_t* weight,
    const scalar_t* bias, const Sequence<scalar_t>& dx, scalar_t* dtaps) {  // dtaps: [threads, blocks, W + 1, width]
  constexpr int width = Simd<scalar_t>::width;
  using V = Vec<scalar_t>;
  for_each_task(tasks, [&](int64_t image, int64_t, int64_t first, int64_t last) {
    const Filter<scalar_t, W> filter(tasks, weight, bias, first, last);
    const scalar_t* rows[W];
    scalar_t* sums = dtaps + at::get_thread_num() * tasks.blocks * (W + 1) * width;
    // Gradients of the sums of the tokens that were met last, W for each block; zeros stand for those beyond the end.
    std::vector<V> latest((last - first) * W);
    for (int64_t i = tasks.length - 1; i >= 0; --i) {
      find_rows<scalar_t, W>(tasks, x, image, i, rows);
      const scalar_t* upstream = grad.at(image, tasks.token(i));
      scalar_t* to = dx.at(image, tasks.token(i));
      for (int64_t block = first; block < last; ++block) {
        const int64_t c = block * width;
        const int count = valid<scalar_t>(tasks, block);
        const V* taps = filter.taps.data() + (block - first) * W;
        V* dsum = latest.data() + (block - first) * W;
        scalar_t* dtap = sums + block * (W + 1) * width;
        const auto total = convolve<scalar_t, W>(rows, taps, c, count, filter.bias[block - first]);
        for (int back = W - 1; back > 0; --back) dsum[back] = dsum[back - 1];
        dsum[0] = silu<scalar_t>(total).slope * load(upstream + c, count);
        const V input = load(rows[0] + c, count);
        V gradient{};
        for (int back = 0; back < W; ++back) {
          const int tap = W - 1 - back;
          gradient += taps[tap] * dsum[back];
          store(dtap + tap * width, load(dtap + tap * width) + input * dsum[back]);
        }
        store(dtap + W * width, load(dtap + W * width) + dsum[0]);
        store(to + c, gradient, count);
      }
    }
  });
}

// Run `...` with the width W of the filter known when compiling.
#define VIM_FILTER_WIDTH(width, ...)                                                     \
  switch (width) {                                                                       \
    case 2: { constexpr int W = 2; __VA_ARGS__; break; }                                 \
    case 3: { constexpr int W = 3; __VA_ARGS__; break; }                                 \
    case 4: { constexpr int W = 4; __VA_ARGS__; break; }                                 \
    default: TORCH_CHECK(false, "the convolution sees 2 to 4 tokens, not ", width);      \
  }

at::Tensor causal_conv1d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool reverse) {
  const auto x_ = rows(x), weight_ = weight.t().contiguous(), bias_ = bias.contiguous();
  auto out = at::empty(x.sizes(), x.options());
  VIM_DISPATCH(x.scalar_type(), {
    const Tasks tasks(x, Simd<scalar_t>::width, reverse);
    VIM_FILTER_WIDTH(weight.size(1), {
      forward<scalar_t, W>(
          tasks, Sequence<scalar_t>(x_), weight_.data_ptr<scalar_t>(), bias_.data_ptr<scalar_t>(),
          Sequence<scalar_t>(out));
    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> causal_conv1d_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool reverse) {
  const auto grad_ = rows(grad), x_ = rows(x), weight_ = weight.t().contiguous(), bias_ = bias.contiguous();
  const int64_t taps = weight.size(1), channels = x.size(2);
  auto dx = at::empty(x.sizes(), x.options());
  at::Tensor dtaps;
  VIM_DISPATCH(x.scalar_type(), {
    const Tasks tasks(x, Simd<scalar_t>::width, reverse);
    dtaps = at::zeros({at::get_num_threads(), tasks.blocks, taps + 1, Simd<scalar_t>::width}, x.options());
    VIM_FILTER_WIDTH(weight.size(1), {
      backward<scalar_t, W>(
          tasks, Sequence<scalar_t>(grad_), Sequence<scalar_t>(x_), weight_.data_ptr<scalar_t>(),
          bias_.data_ptr<scalar_t>(), Sequence<scalar_t>(dx), dtaps.data_ptr<scalar_t>());
    });
  });
  dtaps = dtaps.sum(0).transpose(1, 2).reshape({-1, taps + 1}).narrow(0, 0, channels);
  return {dx, dtaps.narrow(1, 0, taps).contiguous(), dtaps.select(1, taps).contiguous()};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(vim, m) {
  m.def("causal_conv1d(Tensor x, Tensor weight, Tensor bias, bool reverse) -> Tensor");
  m.def(
      "causal_conv1d_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, bool reverse) "
      "-> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(vim, CPU, m) {
  m.impl("causal_conv1d", &causal_conv1d);
  m.impl("causal_conv1d_backward", &causal_conv1d_backward);
}

}  // namespace vim
