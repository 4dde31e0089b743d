// The mixer as one operation: what its forward pass hands to its backward pass, for autograd.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>
#include <vector>

namespace vim {

struct MixerWeights {
  at::Tensor in_proj;
  at::TensorList directions;  // of each the tensors of ssm.composed.Weights
  at::Tensor out_proj;
};

// Tokens [B, L, channels] of the mixer, and what else its backward pass needs: for each direction the projected rows, u
// and delta unless they are recomputed, and the scan's states.
struct Mixed {
  at::Tensor out, xz, scan;
  std::vector<at::Tensor> kept;
};

Mixed mix_forward(const at::Tensor& hidden, const MixerWeights& weights, bool keep, bool recompute);

// Returns the gradients of hidden, in_proj, the directions' tensors and out_proj.
std::vector<at::Tensor> mix_backward(
    const at::Tensor& dout, const at::Tensor& hidden, const MixerWeights& weights, const at::Tensor& xz,
    const at::Tensor& scan, at::TensorList kept, bool recompute);

// The operation without gradients: the mixer's output, and the sum of the directions' scans.
std::tuple<at::Tensor, at::Tensor> mix(
    const at::Tensor& hidden, const at::Tensor& in_proj, at::TensorList directions, const at::Tensor& out_proj,
    bool recompute);

}  // namespace vim
