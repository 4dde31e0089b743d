// Gradients of operations, for autograd. It could record them in Python, but that takes longer than a small kernel.
//
// Operations run below autograd by the dispatcher, where torch.compile and fake tensors meet them.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "mix.h"
#include "operations.h"

namespace vim {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

template <typename Signature, typename... Arguments>
auto below_autograd(const char* name, const Arguments&... arguments) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>().call(arguments...);
}

// A gradient, run() of these inputs, that has none of its own.
template <typename Run>
struct Once : Function<Once<Run>> {
  static variable_list forward(AutogradContext*, at::TensorList /*inputs*/, const Run& run) { return run(); }
  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        false, "the C++ operations have a gradient, but no second derivative: use the reference backend for that");
  }
};

template <typename Run>
variable_list once(variable_list inputs, const variable_list& saved, const Run& run) {
  inputs.insert(inputs.end(), saved.begin(), saved.end());
  return Once<Run>::apply(at::TensorList(inputs), run);
}

struct AddRmsNorm : Function<AddRmsNorm> {
  static variable_list forward(
      AutogradContext* context, const at::Tensor& hidden, const at::Tensor& residual, const at::Tensor& weight,
      double eps) {
    const auto [total, out, scales] =
        below_autograd<decltype(add_rms_norm)>("vim::add_rms_norm", hidden, residual, weight, eps);
    context->save_for_backward({total, weight, scales});
    context->mark_non_differentiable({scales});
    return {total, out, scales};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto gradients = once(grads, saved, [&]() -> variable_list {
      const auto [dx, dweight] = below_autograd<decltype(add_rms_norm_backward)>(
          "vim::add_rms_norm_backward", grads[0], grads[1], saved[0], saved[1], saved[2]);
      return {dx, dweight};
    });
    return {gradients[0], gradients[0], gradients[1], at::Tensor()};
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> add_rms_norm_recorded(
    const at::Tensor& hidden, const at::Tensor& residual, const at::Tensor& weight, double eps) {
  const auto outputs = AddRmsNorm::apply(hidden, residual, weight, eps);
  return {outputs[0], outputs[1], outputs[2]};
}

struct Mix : Function<Mix> {
  static variable_list forward(
      AutogradContext* context, const at::Tensor& hidden, const at::Tensor& in_proj, at::TensorList directions,
      const at::Tensor& out_proj, bool recompute) {
    auto mixed = mix_forward(hidden, {in_proj, directions, out_proj}, /*keep=*/true, recompute);
    variable_list saved{hidden, in_proj, out_proj, mixed.xz, mixed.scan};
    saved.insert(saved.end(), directions.begin(), directions.end());
    saved.insert(saved.end(), mixed.kept.begin(), mixed.kept.end());
    context->save_for_backward(std::move(saved));
    context->mark_non_differentiable({mixed.scan});
    context->set_materialize_grads(false);
    context->saved_data["parameters"] = static_cast<int64_t>(directions.size());
    context->saved_data["recompute"] = recompute;
    return {mixed.out, mixed.scan};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto& dout = grads[0];
    const auto parameters = context->saved_data["parameters"].toInt();
    const bool recompute = context->saved_data["recompute"].toBool();
    if (!dout.defined()) return variable_list(parameters + 4);
    auto gradients = once({dout}, saved, [&] {
      const at::TensorList rest = at::TensorList(saved).slice(5);
      const MixerWeights weights{saved[1], rest.slice(0, parameters), saved[2]};
      return mix_backward(dout, saved[0], weights, saved[3], saved[4], rest.slice(parameters), recompute);
    });
    gradients.emplace_back();
    return gradients;
  }
};

std::tuple<at::Tensor, at::Tensor> mix_recorded(
    const at::Tensor& hidden, const at::Tensor& in_proj, at::TensorList directions, const at::Tensor& out_proj,
    bool recompute) {
  if (!torch::autograd::compute_requires_grad(hidden, in_proj, directions, out_proj)) {
    return mix(hidden, in_proj, directions, out_proj, recompute);
  }
  const auto outputs = Mix::apply(hidden, in_proj, directions, out_proj, recompute);
  return {outputs[0], outputs[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(vim, Autograd, m) {
  m.impl("add_rms_norm", &add_rms_norm_recorded);
  m.impl("mix", &mix_recorded);
}

}  // namespace vim
