// All directions of the mixer between its projections as one operation, forward and backward: what ssm/composed.py does
// with single operations, without the time that Python and the dispatcher take between them.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <vector>

#include "operations.h"

namespace vim {
namespace {

constexpr int64_t kParameters = 7;  // of a direction, in the order of ssm.composed.Weights

// Keep autograd and autocast out of what runs inside.
struct Plainly {
  at::AutoDispatchBelowAutograd below_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{at::autocast::get_autocast_dispatch_key_from_device_type(at::kCPU)};
};

// One direction's parameters and its views of x and z. Tokens are rows [B L, channels] for products, sequences
// [B, L, channels] for the convolution and the scan.
struct Direction {
  at::Tensor conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, x, z;
  int64_t images, tokens, rank, states;
  bool reverse;

  Direction(const at::Tensor& xz, at::TensorList all, int64_t index)
      : images(xz.size(0)), tokens(xz.size(1)), reverse(index == 1) {
    const at::TensorList own = all.slice(index * kParameters, kParameters);
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

at::Tensor as_rows(const at::Tensor& sequence) { return sequence.view({-1, sequence.size(2)}); }

// Returns y [B, L, D] and, if `keep`, what the backward pass needs: for each direction the projected rows, u and delta
// unless `recompute`, and the scan's states.
std::tuple<at::Tensor, std::vector<at::Tensor>> mix(
    const at::Tensor& xz, at::TensorList parameters, bool keep, bool recompute) {
  const Plainly guard;
  at::Tensor y = at::empty({xz.size(0), xz.size(1), xz.size(2) / 2}, xz.options());
  std::vector<at::Tensor> saved;
  for (int64_t i = 0; i < static_cast<int64_t>(parameters.size()) / kParameters; ++i) {
    const Direction d(xz, parameters, i);
    const auto u = d.convolve();
    const auto projected = at::mm(as_rows(u), d.x_proj.t());
    const auto delta = d.step_sizes(projected);
    const auto states = selective_scan_into(
        u, delta, d.A, d.B(projected), d.C(projected), d.D, d.z, d.dt_bias, d.reverse, keep, y, /*add=*/i > 0);
    if (!keep) continue;
    saved.push_back(projected);
    if (!recompute) saved.insert(saved.end(), {u, delta});
    saved.push_back(states);
  }
  return {y, saved};
}

// Returns the gradients of xz and of the parameters.
std::tuple<at::Tensor, std::vector<at::Tensor>> mix_backward(
    const at::Tensor& grad, const at::Tensor& xz, at::TensorList parameters, at::TensorList saved, bool recompute) {
  const Plainly guard;
  at::Tensor dxz = at::empty_like(xz);
  at::Tensor dx = dxz.narrow(2, 0, xz.size(2) / 2), dz = dxz.narrow(2, xz.size(2) / 2, xz.size(2) / 2);
  std::vector<at::Tensor> gradients;
  const int64_t kept = recompute ? 2 : 4;
  for (int64_t i = 0; i < static_cast<int64_t>(parameters.size()) / kParameters; ++i) {
    const bool add = i > 0;
    const Direction d(xz, parameters, i);
    const auto own = saved.slice(i * kept, kept);
    const auto &projected = own[0], &states = own[kept - 1];
    const auto u = recompute ? d.convolve() : own[1], delta = recompute ? d.step_sizes(projected) : own[2];

    auto dprojected = at::empty_like(projected);
    auto ddt = d.dt(dprojected), dB = d.B(dprojected), dC = d.C(dprojected);
    auto [du, ddelta, dA, dD, dt_bias] = selective_scan_backward_into(
        grad, u, delta, d.A, d.B(projected), d.C(projected), d.D, d.z, d.dt_bias, states, d.reverse, dB, dC, dz, add);
    const auto ddelta_rows = as_rows(ddelta);
    at::mm_out(ddt, ddelta_rows, d.dt_proj);
    as_rows(du).addmm_(dprojected, d.x_proj);
    const auto [dweight, dbias] =
        causal_conv1d_backward_into(du, d.x, d.conv_weight, d.conv_bias, d.reverse, dx, add);
    gradients.insert(
        gradients.end(),
        {dweight.unsqueeze(1), dbias, at::mm(dprojected.t(), as_rows(u)), at::mm(ddelta_rows.t(), d.dt(projected)),
         dt_bias, dA.mul_(d.A), dD});
  }
  return {dxz, gradients};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(vim, m) {
  m.def("mix(Tensor xz, Tensor[] parameters, bool keep, bool recompute) -> (Tensor, Tensor[])");
  m.def(
      "mix_backward(Tensor grad, Tensor xz, Tensor[] parameters, Tensor[] saved, bool recompute) "
      "-> (Tensor, Tensor[])");
}

TORCH_LIBRARY_IMPL(vim, CPU, m) {
  m.impl("mix", &mix);
  m.impl("mix_backward", &mix_backward);
}

}  // namespace vim
