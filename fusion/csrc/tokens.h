// What matching and merging share.
#pragma once

#include <ATen/core/Tensor.h>

namespace vim {

inline void check_tokens(const char* name, const at::Tensor& t) {
  TORCH_CHECK(t.dim() == 3, name, " must be [images, tokens, channels], not of shape ", t.sizes());
}

// Run `...` with `type_t` as float or double.
#define VIM_FLOATING(type, type_t, ...)                              \
  if ((type) == at::kFloat) {                                        \
    using type_t = float;                                            \
    __VA_ARGS__;                                                     \
  } else {                                                           \
    TORCH_CHECK((type) == at::kDouble, "fp32 or fp64, not ", (type)); \
    using type_t = double;                                           \
    __VA_ARGS__;                                                     \
  }

// Run `...` with scalar_t as the dtype of tokens.
#define VIM_TOKENS(type, ...)             \
  if ((type) == at::kBFloat16) {          \
    using scalar_t = at::BFloat16;        \
    __VA_ARGS__;                          \
  } else if ((type) == at::kHalf) {       \
    using scalar_t = at::Half;            \
    __VA_ARGS__;                          \
  } else {                                \
    VIM_FLOATING(type, scalar_t, __VA_ARGS__) \
  }

}  // namespace vim
