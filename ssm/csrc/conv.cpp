// Causal depthwise convolution and SiLU, forward and backward, on channels-last tensors.
//
// Sixteen channels of one image run side by side. Nothing is kept for the backward pass: the sum before the SiLU is
// computed again.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "sequence.h"

namespace vim {
namespace {

// The sum before the SiLU for the token met as the i-th: tap W - 1 multiplies the token itself, tap 0 the oldest.
template <typename scalar_t>
VIM_INLINE Vec<scalar_t> convolve(
    const Tasks& tasks, const Sequence<scalar_t>& x, int64_t image, int64_t c, int count, int64_t i,
    const Vec<scalar_t>* taps, int64_t W, Vec<scalar_t> total) {
  for (int64_t back = 0; back < std::min(W, i + 1); ++back) {
    total += taps[W - 1 - back] * load(x.at(image, tasks.token(i - back)) + c, count);
  }
  return total;
}

template <typename scalar_t>
void forward(
    const Tasks& tasks, int64_t W, const Sequence<scalar_t>& x, const scalar_t* weight, const scalar_t* bias,
    const Sequence<scalar_t>& out) {
  for_each_task(tasks, [&](int64_t image, int64_t, int64_t first, int64_t last) {
    std::vector<Vec<scalar_t>> taps(W);
    for (int64_t block = first; block < last; ++block) {
      const int64_t c = block * Simd<scalar_t>::width;
      const int count = valid<scalar_t>(tasks, block);
      for (int64_t k = 0; k < W; ++k) taps[k] = load(weight + k * tasks.channels + c, count);
      const Vec<scalar_t> start = load(bias + c, count);
      for (int64_t i = 0; i < tasks.length; ++i) {
        const auto total = convolve(tasks, x, image, c, count, i, taps.data(), W, start);
        store(out.at(image, tasks.token(i)) + c, silu<scalar_t>(total).value, count);
      }
    }
  });
}

template <typename scalar_t>
void backward(
    const Tasks& tasks, int64_t W, const Sequence<scalar_t>& grad, const Sequence<scalar_t>& x, const scalar_t* weight,
    const scalar_t* bias, const Sequence<scalar_t>& dx, scalar_t* dtaps) {  // dtaps: [threads, blocks, W + 1, width]
  constexpr int width = Simd<scalar_t>::width;
  using V = Vec<scalar_t>;
  for_each_task(tasks, [&](int64_t image, int64_t, int64_t first, int64_t last) {
    const int64_t thread = at::get_thread_num() * tasks.blocks;
    // Gradients of the sums, with zeros after the end for the taps that reach beyond it.
    std::vector<V> taps(W), dtap(W + 1), dsum(tasks.length + W - 1);
    for (int64_t block = first; block < last; ++block) {
      const int64_t c = block * width;
      const int count = valid<scalar_t>(tasks, block);
      scalar_t* sums = dtaps + (thread + block) * (W + 1) * width;
      for (int64_t k = 0; k < W; ++k) taps[k] = load(weight + k * tasks.channels + c, count);
      for (int64_t k = 0; k <= W; ++k) dtap[k] = load(sums + k * width);
      const V start = load(bias + c, count);
      for (int64_t i = 0; i < tasks.length; ++i) {
        const auto total = convolve(tasks, x, image, c, count, i, taps.data(), W, start);
        dsum[i] = silu<scalar_t>(total).slope * load(grad.at(image, tasks.token(i)) + c, count);
        dtap[W] += dsum[i];
      }
      for (int64_t i = 0; i < tasks.length; ++i) {
        const V input = load(x.at(image, tasks.token(i)) + c, count);
        V total{};
        for (int64_t back = 0; back < W; ++back) {
          total += taps[W - 1 - back] * dsum[i + back];
          dtap[W - 1 - back] += input * dsum[i + back];
        }
        store(dx.at(image, tasks.token(i)) + c, total, count);
      }
      for (int64_t k = 0; k <= W; ++k) store(sums + k * width, dtap[k]);
    }
  });
}

at::Tensor causal_conv1d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool reverse) {
  const auto x_ = rows(x), weight_ = weight.t().contiguous(), bias_ = bias.contiguous();
  auto out = at::empty(x.sizes(), x.options());
  VIM_DISPATCH(x.scalar_type(), {
    const Tasks tasks(x, Simd<scalar_t>::width, reverse);
    forward<scalar_t>(
        tasks, weight.size(1), Sequence<scalar_t>(x_), weight_.data_ptr<scalar_t>(), bias_.data_ptr<scalar_t>(),
        Sequence<scalar_t>(out));
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> causal_conv1d_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool reverse) {
  const auto grad_ = rows(grad), x_ = rows(x), weight_ = weight.t().contiguous(), bias_ = bias.contiguous();
  const int64_t W = weight.size(1), channels = x.size(2);
  auto dx = at::empty(x.sizes(), x.options());
  at::Tensor dtaps;
  VIM_DISPATCH(x.scalar_type(), {
    const Tasks tasks(x, Simd<scalar_t>::width, reverse);
    dtaps = at::zeros({at::get_num_threads(), tasks.blocks, W + 1, Simd<scalar_t>::width}, x.options());
    backward<scalar_t>(
        tasks, W, Sequence<scalar_t>(grad_), Sequence<scalar_t>(x_), weight_.data_ptr<scalar_t>(),
        bias_.data_ptr<scalar_t>(), Sequence<scalar_t>(dx), dtaps.data_ptr<scalar_t>());
  });
  dtaps = dtaps.sum(0).transpose(1, 2).reshape({-1, W + 1}).narrow(0, 0, channels);
  return {dx, dtaps.narrow(1, 0, W).contiguous(), dtaps.select(1, W).contiguous()};
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
