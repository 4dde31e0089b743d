// The whole mixer as one operation, forward and backward: what ssm/composed.py does between the mixer's projections,
// and these, without the time that Python, autograd and the dispatcher take between single operations.
#include "mix.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include "operations.h"

namespace vim {
namespace {

constexpr int64_t kParameters = 7;  // of a direction, in the order of ssm.composed.Weights

// Keep autograd and autocast out of what runs inside.
struct Plainly {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{at::autocast::get_autocast_dispatch_key_from_device_type(at::kCPU)};
};

int64_t directions(const MixerWeights& weights) {
  return static_cast<int64_t>(weights.directions.size()) / kParameters;
}

// One direction's parameters and its views of x and z. Tokens are rows [B L, channels] for products, sequences
// [B, L, channels] for the convolution and the scan.
struct Direction {
  at::Tensor conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, x, z;
  int64_t images, tokens, rank, states;
  bool reverse;

  Direction(const at::Tensor& xz, const MixerWeights& weights, int64_t index)
      : images(xz.size(0)), tokens(xz.size(1)), reverse(index == 1) {
    const at::TensorList own = weights.directions.slice(index * kParameters, kParameters);
    conv_weight = own[0].squeeze(1), conv_bias = own[1], x_proj = own[2], dt_proj = own[3], dt_bias = own[4];
    A = own[5].exp().neg_(), D = own[6];
    rank = dt_proj.size(1), states = A.size(1);
    const int64_t channels = xz.size(2) / 2;
    x = xz.narrow(2, 0, channels), z = xz.narrow(2, channels, channels);
  }

  at::Tensor sequence(const at::Tensor& rows) const { return rows.view({images, tokens, rows.size(1)}); }
  at::Tensor dt(const at::Tensor& projected) const { return projected.narrow(1, 0, rank); }
  at::Tensor B(const at::Tensor& projected) const { return sequence(projected).narrow(2, rank, states); }
  at::Tensor C(const at::Tensor& projected) const { return sequence(projected).narrow(2, rank + states, states); }

  at::Tensor convolve() const { return causal_conv1d(x, conv_weight, conv_bias, reverse); }
  at::Tensor step_sizes(const at::Tensor& projected) const { return sequence(at::mm(dt(projected), dt_proj.t())); }
};

at::Tensor as_rows(const at::Tensor& sequence) { return sequence.reshape({-1, sequence.size(2)}); }

// a b by its transpose, b' a': MKL takes two to six times as long if the second matrix has only a few columns.
at::Tensor narrow_product(const at::Tensor& a, const at::Tensor& b) { return at::mm(b.t(), a.t()).t(); }

void narrow_product_into(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  auto transposed = out.t();
  at::mm_out(transposed, b.t(), a.t());
}

// a b times a factor, without a pass of its own for it.
at::Tensor scaled_product(const at::Tensor& a, const at::Tensor& b, double factor) {
  auto out = at::empty({a.size(0), b.size(1)}, a.options());
  return out.addmm_(a, b, /*beta=*/0, factor);
}

}  // namespace

Mixed mix_forward(const at::Tensor& hidden, const MixerWeights& weights, bool keep, bool recompute) {
  const Plainly guard;
  const int64_t images = hidden.size(0), tokens = hidden.size(1), width = weights.in_proj.size(0);
  Mixed result;
  result.xz = at::mm(as_rows(hidden), weights.in_proj.t()).view({images, tokens, width});
  result.scan = at::empty({images, tokens, width / 2}, hidden.options());
  for (int64_t i = 0; i < directions(weights); ++i) {
    const Direction d(result.xz, weights, i);
    const auto u = d.convolve();
    const auto projected = at::mm(as_rows(u), d.x_proj.t());
    const auto delta = d.step_sizes(projected);
    const auto states = selective_scan_into(
        u, delta, d.A, d.B(projected), d.C(projected), d.D, d.z, d.dt_bias, d.reverse, keep, result.scan,
        /*add=*/i > 0);
    if (!keep) continue;
    result.kept.push_back(projected);
    if (!recompute) result.kept.insert(result.kept.end(), {u, delta});
    result.kept.push_back(states);
  }
  result.out = scaled_product(as_rows(result.scan), weights.out_proj.t(), 1.0 / directions(weights));
  result.out = result.out.view({images, tokens, weights.out_proj.size(0)});
  return result;
}

std::vector<at::Tensor> mix_backward(
    const at::Tensor& dout, const at::Tensor& hidden, const MixerWeights& weights, const at::Tensor& xz,
    const at::Tensor& scan, at::TensorList kept, bool recompute) {
  const Plainly guard;
  const double share = 1.0 / directions(weights);
  const auto dout_rows = as_rows(dout);
  const auto dout_proj = scaled_product(dout_rows.t(), as_rows(scan), share);
  const auto dscan = scaled_product(dout_rows, weights.out_proj, share).view(scan.sizes());

  at::Tensor dxz = at::empty_like(xz);
  at::Tensor dx = dxz.narrow(2, 0, xz.size(2) / 2), dz = dxz.narrow(2, xz.size(2) / 2, xz.size(2) / 2);
  std::vector<at::Tensor> gradients;
  const int64_t each = recompute ? 2 : 4;
  for (int64_t i = 0; i < directions(weights); ++i) {
    const bool add = i > 0;
    const Direction d(xz, weights, i);
    const auto own = kept.slice(i * each, each);
    const auto &projected = own[0], &states = own[each - 1];
    const auto u = recompute ? d.convolve() : own[1], delta = recompute ? d.step_sizes(projected) : own[2];

    auto dprojected = at::empty_like(projected);
    auto dB = d.B(dprojected), dC = d.C(dprojected);
    auto [du, ddelta, dA, dD, dt_bias] = selective_scan_backward_into(
        dscan, u, delta, d.A, d.B(projected), d.C(projected), d.D, d.z, d.dt_bias, states, d.reverse, dB, dC, dz, add);
    const auto ddelta_rows = as_rows(ddelta);
    narrow_product_into(d.dt(dprojected), ddelta_rows, d.dt_proj);
    as_rows(du).addmm_(dprojected, d.x_proj);
    const auto [dweight, dbias] =
        causal_conv1d_backward_into(du, d.x, d.conv_weight, d.conv_bias, d.reverse, dx, add);
    const auto dx_proj = at::mm(dprojected.t(), as_rows(u));
    const auto ddt_proj = narrow_product(ddelta_rows.t(), d.dt(projected));
    gradients.insert(
        gradients.end(), {dweight.unsqueeze(1), dbias, dx_proj, ddt_proj, dt_bias, dA.mul_(d.A), dD});
  }
  const auto dxz_rows = as_rows(dxz);
  const auto din_proj = at::mm(dxz_rows.t(), as_rows(hidden));
  gradients.insert(gradients.begin(), {at::mm(dxz_rows, weights.in_proj).view(hidden.sizes()), din_proj});
  gradients.push_back(dout_proj);
  return gradients;
}

std::tuple<at::Tensor, at::Tensor> mix(
    const at::Tensor& hidden, const at::Tensor& in_proj, at::TensorList directions, const at::Tensor& out_proj,
    bool recompute) {
  const auto mixed = mix_forward(hidden, {in_proj, directions, out_proj}, /*keep=*/false, recompute);
  return {mixed.out, mixed.scan};
}

TORCH_LIBRARY_FRAGMENT(vim, m) {
  m.def(
      "mix(Tensor hidden, Tensor in_proj, Tensor[] directions, Tensor out_proj, bool recompute) "
      "-> (Tensor out, Tensor scan)");
}

TORCH_LIBRARY_IMPL(vim, CPU, m) { m.impl("mix", &mix); }

}  // namespace vim
