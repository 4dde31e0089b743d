// Merging and its adjoint, for autograd.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace vim {

std::tuple<at::Tensor, at::Tensor, at::Tensor> merge(
    const at::Tensor& hidden, const at::Tensor& residual, const at::Tensor& size, const at::Tensor& keep,
    const at::Tensor& source, const at::Tensor& index, bool by_size);

std::tuple<at::Tensor, at::Tensor> merge_backward(
    const at::Tensor& dhidden, const at::Tensor& dresidual, const at::Tensor& size, const at::Tensor& keep,
    const at::Tensor& source, const at::Tensor& index, bool by_size);

}  // namespace vim
