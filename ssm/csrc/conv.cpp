// Causal depthwise convolution and SiLU, forward and backward, on channels-last tensors.
//
// A register of channels runs through all tokens with what they need. Nothing is kept for the backward pass: the sum
// before the SiLU is computed again.

#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>

#include "operations.h"
#include "sequence.h"

namespace vim {
namespace {

// The W tokens seen last, the latest first; before the first one there are zeros.
template <typename scalar_t, int W>
struct Window {
  Vec<scalar_t> seen[W] = {};

  VIM_INLINE void push(Vec<scalar_t> latest) {
    for (int back = W - 1; back > 0; --back) seen[back] = seen[back - 1];
    seen[0] = latest;
  }
};

// The filter of some channels: tap 0 multiplies the token itself, tap W - 1 the oldest it sees.
template <typename scalar_t, int W>
struct Filter {
  Vec<scalar_t> taps[W], bias;

  VIM_INLINE Filter(const Tasks& tasks, const scalar_t* weight, const scalar_t* from, int64_t c, int count)
      : bias(load(from + c, count)) {
    for (int back = 0; back < W; ++back) taps[back] = load(weight + (W - 1 - back) * tasks.channels + c, count);
  }
  VIM_INLINE Vec<scalar_t> operator()(const Window<scalar_t, W>& x) const {
    Vec<scalar_t> total = bias;
    for (int back = 0; back < W; ++back) total += taps[back] * x.seen[back];
    return total;
  }
};

template <typename scalar_t, int W>
void forward(
    const Tasks& tasks, const Sequence<scalar_t>& x, const scalar_t* weight, const scalar_t* bias,
    const Sequence<scalar_t>& out) {
  for_each_task(tasks, [&](int64_t image, int64_t, int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t c = block * Simd<scalar_t>::width;
      const int count = valid<scalar_t>(tasks, block);
      const Filter<scalar_t, W> filter(tasks, weight, bias, c, count);
      Window<scalar_t, W> window;
      for (int64_t i = 0; i < tasks.length; ++i) {
        x.prefetch(image, tasks.token(i), c + Simd<scalar_t>::width);
        window.push(load(x.at(image, tasks.token(i)) + c, count));
        store(out.at(image, tasks.token(i)) + c, silu<scalar_t>(filter(window)).value, count);
      }
    }
  });
}

template <typename scalar_t, int W>
void backward(
    const Tasks& tasks, const Sequence<scalar_t>& grad, const Sequence<scalar_t>& x, const scalar_t* weight,
    const scalar_t* bias, const Sequence<scalar_t>& dx, bool add,
    scalar_t* dtaps) {  // dtaps: [threads, blocks, W + 1, width]
  constexpr int width = Simd<scalar_t>::width;
  using V = Vec<scalar_t>;
  for_each_task(tasks, [&](int64_t image, int64_t, int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      const int64_t c = block * width;
      const int count = valid<scalar_t>(tasks, block);
      const Filter<scalar_t, W> filter(tasks, weight, bias, c, count);
      const auto input = [&](int64_t i) { return i < 0 ? V{} : load(x.at(image, tasks.token(i)) + c, count); };
      // From the last token to the first: what it sees, and the gradients of the sums of those that see it.
      Window<scalar_t, W> window, dsums;
      for (int back = 1; back < W; ++back) window.seen[back - 1] = input(tasks.length - back);
      V dtap[W] = {}, dbias{};
      for (int64_t i = tasks.length - 1; i >= 0; --i) {
        x.prefetch(image, tasks.token(i), c + width);
        grad.prefetch(image, tasks.token(i), c + width);
        window.seen[W - 1] = input(i - (W - 1));
        dsums.push(silu<scalar_t>(filter(window)).slope * load(grad.at(image, tasks.token(i)) + c, count));
        scalar_t* to_x = dx.at(image, tasks.token(i)) + c;
        V gradient = add ? load(to_x, count) : V{};
        for (int back = 0; back < W; ++back) {
          gradient += filter.taps[back] * dsums.seen[back];
          dtap[back] += window.seen[0] * dsums.seen[back];
        }
        dbias += dsums.seen[0];
        store(to_x, gradient, count);
        for (int back = 0; back < W - 1; ++back) window.seen[back] = window.seen[back + 1];
      }
      scalar_t* sums = dtaps + (at::get_thread_num() * tasks.blocks + block) * (W + 1) * width;
      for (int back = 0; back < W; ++back) {
        scalar_t* to = sums + (W - 1 - back) * width;
        store(to, load(to) + dtap[back]);
      }
      store(sums + W * width, load(sums + W * width) + dbias);
    }
  });
}

// Run `...` with the width W of the filter known when compiling.
#define VIM_FILTER_WIDTH(width, ...)                                                     \
  switch (width) {                                                                       \
    case 2: { constexpr int W = 2; __VA_ARGS__; break; }                                 \
    case 3: { constexpr int W = 3; __VA_ARGS__; break; }                                 \
    case 4: { constexpr int W = 4; __VA_ARGS__; break; }                                 \
    default: TORCH_CHECK(                                                                \
        false, "the convolution sees 2 to 4 tokens in C++, not ", width, ": use the reference backend for that"); \
  }

void check_inputs(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  check_sequence("x", x);
  TORCH_CHECK(weight.dim() == 2, "weight must be [channels, tokens], not of shape ", weight.sizes());
  check("weight", weight, {x.size(2), weight.size(1)}, x);
  check("bias", bias, {x.size(2)}, x);
}

}  // namespace

at::Tensor causal_conv1d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool reverse) {
  check_inputs(x, weight, bias);
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

std::tuple<at::Tensor, at::Tensor> causal_conv1d_backward_into(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool reverse,
    at::Tensor& dx, bool add) {
  check_inputs(x, weight, bias);
  check("grad", grad, x.sizes(), x);
  check_buffer("dx", dx, x.sizes(), x);
  const auto grad_ = rows(grad), x_ = rows(x), weight_ = weight.t().contiguous(), bias_ = bias.contiguous();
  const int64_t taps = weight.size(1), channels = x.size(2);
  at::Tensor dweight, dbias;
  VIM_DISPATCH(x.scalar_type(), {
    const Tasks tasks(x, Simd<scalar_t>::width, reverse);
    auto dtaps = at::zeros({at::get_num_threads(), tasks.blocks, taps + 1, Simd<scalar_t>::width}, x.options());
    VIM_FILTER_WIDTH(weight.size(1), {
      backward<scalar_t, W>(
          tasks, Sequence<scalar_t>(grad_), Sequence<scalar_t>(x_), weight_.data_ptr<scalar_t>(),
          bias_.data_ptr<scalar_t>(), Sequence<scalar_t>(dx), add, dtaps.data_ptr<scalar_t>());
    });
    dweight = sum_over_threads<scalar_t>(dtaps, channels, 0, taps);
    dbias = sum_over_threads<scalar_t>(dtaps, channels, taps, 1);
  });
  return {dweight, dbias.view({channels})};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> causal_conv1d_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool reverse) {
  auto dx = at::empty(x.sizes(), x.options());
  const auto [dweight, dbias] = causal_conv1d_backward_into(grad, x, weight, bias, reverse, dx, /*add=*/false);
  return {dx, dweight, dbias};
}

TORCH_LIBRARY_FRAGMENT(vim, m) {
  m.def("causal_conv1d(Tensor x, Tensor weight, Tensor bias, bool reverse) -> Tensor");
  m.def(
      "causal_conv1d_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, bool reverse) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "causal_conv1d_backward_into(Tensor grad, Tensor x, Tensor weight, Tensor bias, bool reverse, Tensor(a!) dx, "
      "bool add) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(vim, CPU, m) {
  m.impl("causal_conv1d", &causal_conv1d);
  m.impl("causal_conv1d_backward", &causal_conv1d_backward);
  m.impl("causal_conv1d_backward_into", &causal_conv1d_backward_into);
}

}  // namespace vim
