// Operations that others in C++ call: the mixer as one operation, and autograd.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace vim {

at::Tensor causal_conv1d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool reverse);

std::tuple<at::Tensor, at::Tensor> causal_conv1d_backward_into(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, bool reverse,
    at::Tensor& dx, bool add);

at::Tensor selective_scan_into(
    const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A, const at::Tensor& B, const at::Tensor& C,
    const at::Tensor& D, const at::Tensor& z, const at::Tensor& delta_bias, bool reverse, bool keep_states,
    at::Tensor& out, bool add);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> selective_scan_backward_into(
    const at::Tensor& grad, const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A, const at::Tensor& B,
    const at::Tensor& C, const at::Tensor& D, const at::Tensor& z, const at::Tensor& delta_bias,
    const at::Tensor& states, bool reverse, at::Tensor& dB, at::Tensor& dC, at::Tensor& dz, bool add);

std::tuple<at::Tensor, at::Tensor, at::Tensor> add_rms_norm(
    const at::Tensor& hidden, const at::Tensor& residual, const at::Tensor& weight, double eps);

std::tuple<at::Tensor, at::Tensor> add_rms_norm_backward(
    const at::Tensor& dtotal, const at::Tensor& dout, const at::Tensor& total, const at::Tensor& weight,
    const at::Tensor& scales);

}  // namespace vim
