// Gradients of merging, for autograd. It could record them in Python, but that takes longer than merging few tokens.
//
// Merging is linear: its gradient is its adjoint, and the gradient of that is merging.

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "merge.h"

namespace vim {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// An operation by the dispatcher, where torch.compile and fake tensors meet it.
template <typename Signature>
auto operation(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

void save(AutogradContext* context, const variable_list& tensors, bool by_size) {
  context->save_for_backward(tensors);
  context->saved_data["by_size"] = by_size;
}

struct Merge : Function<Merge> {
  static variable_list forward(
      AutogradContext* context, const at::Tensor& hidden, const at::Tensor& residual, const at::Tensor& size,
      const at::Tensor& keep, const at::Tensor& source, const at::Tensor& index, bool by_size) {
    save(context, {size, keep, source, index}, by_size);
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [merged_hidden, merged_residual, total] =
        operation<decltype(merge)>("vim::merge").call(hidden, residual, size, keep, source, index, by_size);
    context->mark_non_differentiable({total});
    return {merged_hidden, merged_residual, total};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto [hidden, residual] = operation<decltype(merge_backward)>("vim::merge_backward")
                                  .call(grads[0], grads[1], saved[0], saved[1], saved[2], saved[3],
                                        context->saved_data["by_size"].toBool());
    return {hidden, residual, {}, {}, {}, {}, {}};
  }
};

struct MergeBackward : Function<MergeBackward> {
  static variable_list forward(
      AutogradContext* context, const at::Tensor& dhidden, const at::Tensor& dresidual, const at::Tensor& size,
      const at::Tensor& keep, const at::Tensor& source, const at::Tensor& index, bool by_size) {
    save(context, {size, keep, source, index}, by_size);
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [hidden, residual] = operation<decltype(merge_backward)>("vim::merge_backward")
                                  .call(dhidden, dresidual, size, keep, source, index, by_size);
    return {hidden, residual};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    auto [hidden, residual, total] =
        operation<decltype(merge)>("vim::merge")
            .call(grads[0], grads[1], saved[0], saved[1], saved[2], saved[3], context->saved_data["by_size"].toBool());
    return {hidden, residual, {}, {}, {}, {}, {}};
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> merge_recorded(
    const at::Tensor& hidden, const at::Tensor& residual, const at::Tensor& size, const at::Tensor& keep,
    const at::Tensor& source, const at::Tensor& index, bool by_size) {
  const auto outputs = Merge::apply(hidden, residual, size, keep, source, index, by_size);
  return {outputs[0], outputs[1], outputs[2]};
}

std::tuple<at::Tensor, at::Tensor> merge_backward_recorded(
    const at::Tensor& dhidden, const at::Tensor& dresidual, const at::Tensor& size, const at::Tensor& keep,
    const at::Tensor& source, const at::Tensor& index, bool by_size) {
  const auto outputs = MergeBackward::apply(dhidden, dresidual, size, keep, source, index, by_size);
  return {outputs[0], outputs[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(vim, Autograd, m) {
  m.impl("merge", &merge_recorded);
  m.impl("merge_backward", &merge_backward_recorded);
}

}  // namespace vim
