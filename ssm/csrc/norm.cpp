// Add to the residual and normalise it (RMSNorm, arXiv 1910.07467), forward and backward, in one pass over each token.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>

#include "operations.h"
#include "sequence.h"

namespace vim {
namespace {

template <typename scalar_t>
VIM_INLINE scalar_t sum_all(Vec<scalar_t> value) {
  return sum<scalar_t>(fold<scalar_t>(value));
}

// body(row) for all rows, in one range a thread.
template <typename Body>
void for_each_row(int64_t rows, const Body& body) {
  at::parallel_for(0, rows, ceil_div(rows, at::get_num_threads()), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

// body(first channel, how many) for a token's channels, a register at a time.
template <typename scalar_t, typename Body>
VIM_INLINE void for_each_block(int64_t channels, const Body& body) {
  constexpr int width = Simd<scalar_t>::width;
  for (int64_t c = 0; c < channels; c += width) body(c, static_cast<int>(std::min<int64_t>(width, channels - c)));
}

void check_norm_inputs(const at::Tensor& hidden, const at::Tensor& residual, const at::Tensor& weight) {
  check_sequence("hidden", hidden);
  check("residual", residual, hidden.sizes(), hidden);
  check("weight", weight, {hidden.size(2)}, hidden);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> add_rms_norm(
    const at::Tensor& hidden, const at::Tensor& residual, const at::Tensor& weight, double eps) {
  check_norm_inputs(hidden, residual, weight);
  const auto hidden_ = hidden.contiguous(), residual_ = residual.contiguous(), weight_ = weight.contiguous();
  auto total = at::empty(hidden.sizes(), hidden.options()), out = at::empty(hidden.sizes(), hidden.options());
  auto scales = at::empty({hidden.size(0), hidden.size(1)}, hidden.options());
  const int64_t channels = hidden.size(2);
  VIM_DISPATCH(hidden.scalar_type(), {
    using V = Vec<scalar_t>;
    const scalar_t *a = hidden_.data_ptr<scalar_t>(), *b = residual_.data_ptr<scalar_t>();
    const scalar_t* w = weight_.data_ptr<scalar_t>();
    scalar_t *x = total.data_ptr<scalar_t>(), *y = out.data_ptr<scalar_t>(), *scale = scales.data_ptr<scalar_t>();
    for_each_row(scales.numel(), [&](int64_t row) {
      const int64_t at = row * channels;
      V squares{};
      for_each_block<scalar_t>(channels, [&](int64_t c, int count) {
        const V value = load(a + at + c, count) + load(b + at + c, count);
        store(x + at + c, value, count);
        squares += value * value;
      });
      scale[row] = 1 / std::sqrt(sum_all<scalar_t>(squares) / channels + static_cast<scalar_t>(eps));
      for_each_block<scalar_t>(channels, [&](int64_t c, int count) {
        store(y + at + c, load(x + at + c, count) * scale[row] * load(w + c, count), count);
      });
    });
  });
  return {total, out, scales};
}

std::tuple<at::Tensor, at::Tensor> add_rms_norm_backward(
    const at::Tensor& dtotal, const at::Tensor& dout, const at::Tensor& total, const at::Tensor& weight,
    const at::Tensor& scales) {
  check_norm_inputs(total, dtotal, weight);
  check("dout", dout, total.sizes(), total);
  check("scales", scales, {total.size(0), total.size(1)}, total);
  const auto dtotal_ = dtotal.contiguous(), dout_ = dout.contiguous(), weight_ = weight.contiguous();
  const auto total_ = total.contiguous(), scales_ = scales.contiguous();
  auto dx = at::empty(total.sizes(), total.options());
  const int64_t channels = total.size(2);
  auto dweight = at::zeros({at::get_num_threads(), channels}, total.options());
  VIM_DISPATCH(total.scalar_type(), {
    using V = Vec<scalar_t>;
    const scalar_t *g = dout_.data_ptr<scalar_t>(), *direct = dtotal_.data_ptr<scalar_t>();
    const scalar_t *x = total_.data_ptr<scalar_t>(), *w = weight_.data_ptr<scalar_t>();
    const scalar_t* scale = scales_.data_ptr<scalar_t>();
    scalar_t *to = dx.data_ptr<scalar_t>(), *sums = dweight.data_ptr<scalar_t>();
    for_each_row(scales.numel(), [&](int64_t row) {
      const int64_t at = row * channels;
      scalar_t* to_weight = sums + at::get_thread_num() * channels;
      const scalar_t s = scale[row];
      V along{};  // the part of the gradient along x, which the norm takes away
      for_each_block<scalar_t>(channels, [&](int64_t c, int count) {
        const V product = load(g + at + c, count) * load(x + at + c, count) * s;
        store(to_weight + c, load(to_weight + c, count) + product, count);
        along += product * load(w + c, count);
      });
      const scalar_t mean = sum_all<scalar_t>(along) / channels * s;
      for_each_block<scalar_t>(channels, [&](int64_t c, int count) {
        const V inward = load(g + at + c, count) * load(w + c, count) - load(x + at + c, count) * mean;
        store(to + at + c, load(direct + at + c, count) + inward * s, count);
      });
    });
  });
  return {dx, dweight.sum(0)};
}

TORCH_LIBRARY_FRAGMENT(vim, m) {
  m.def("add_rms_norm(Tensor hidden, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "add_rms_norm_backward(Tensor dtotal, Tensor dout, Tensor total, Tensor weight, Tensor scales) "
      "-> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(vim, CPU, m) {
  m.impl("add_rms_norm", &add_rms_norm);
  m.impl("add_rms_norm_backward", &add_rms_norm_backward);
}

}  // namespace vim
