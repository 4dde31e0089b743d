// Channels-last tensors and how their images and channels are shared out to threads.
#pragma once

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cfenv>

#include "simd.h"

namespace vim {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A [B, L, channels] tensor whose channels lie side by side.
template <typename scalar_t>
struct Sequence {
  scalar_t* data;
  int64_t image_stride, token_stride;

  explicit Sequence(const at::Tensor& t)
      : data(t.data_ptr<scalar_t>()), image_stride(t.stride(0)), token_stride(t.stride(1)) {}
  VIM_INLINE scalar_t* at(int64_t image, int64_t token) const {
    return data + image * image_stride + token * token_stride;
  }
  // Ask for the next channels while the present ones are worked on: rows lie too far apart for the processor to guess.
  VIM_INLINE void prefetch(int64_t image, int64_t token, int64_t channel) const {
    __builtin_prefetch(at(image, token) + channel);
  }
};

// How the work is cut: into images, and where these don't share out evenly to the threads also into channels.
struct Tasks {
  int64_t images, length, channels, blocks, groups, blocks_per_group;
  bool reverse;

  Tasks(const at::Tensor& u, int width, bool reverse)
      : images(u.size(0)), length(u.size(1)), channels(u.size(2)), reverse(reverse) {
    blocks = ceil_div(channels, width);
    const int64_t threads = at::get_num_threads();
    blocks_per_group = std::max<int64_t>(1, images % threads == 0 ? blocks : ceil_div(blocks, threads));
    groups = ceil_div(blocks, blocks_per_group);
  }
  // The token that is met as the i-th.
  VIM_INLINE int64_t token(int64_t i) const { return reverse ? length - 1 - i : i; }
};

// Takes numbers too small for a whole mantissa as zero while it lives: states that decay end there, and processors of
// Intel take a hundred times as long over them.
class FlushDenormals {
 public:
  FlushDenormals() {
    std::fegetenv(&before_);
    at::Context::setFlushDenormal(true);
  }
  ~FlushDenormals() { std::fesetenv(&before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  std::fenv_t before_;
};

// body(image, group, first block, end of blocks) for every task.
template <typename Body>
void for_each_task(const Tasks& tasks, const Body& body) {
  at::parallel_for(0, tasks.images * tasks.groups, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals guard;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task % tasks.groups;
      const int64_t first = group * tasks.blocks_per_group;
      const int64_t last = std::min(tasks.blocks, first + tasks.blocks_per_group);
      body(task / tasks.groups, group, first, last);
    }
  });
}

// Channels of a block that exist; the rest of its width is padding.
template <typename scalar_t>
VIM_INLINE int valid(const Tasks& tasks, int64_t block) {
  constexpr int width = Simd<scalar_t>::width;
  return static_cast<int>(std::min<int64_t>(width, tasks.channels - block * width));
}

// What each thread added up in parts [threads, blocks, rows of a register], summed over threads: rows first to
// first + rows of each channel, [channels, rows].
template <typename scalar_t>
at::Tensor sum_over_threads(const at::Tensor& parts, int64_t channels, int64_t first, int64_t rows) {
  constexpr int64_t width = Simd<scalar_t>::width;
  auto sums = at::empty({channels, rows}, parts.options());
  const scalar_t* from = parts.const_data_ptr<scalar_t>() + first * width;
  scalar_t* to = sums.template mutable_data_ptr<scalar_t>();
  for (int64_t c = 0; c < channels; c += width, from += parts.stride(1)) {
    const int64_t count = std::min(width, channels - c);
    for (int64_t row = 0; row < rows; ++row) {
      Vec<scalar_t> total{};
      for (int64_t thread = 0; thread < parts.size(0); ++thread) {
        total += load(from + thread * parts.stride(0) + row * width);
      }
      for (int64_t i = 0; i < count; ++i) to[(c + i) * rows + row] = total[i];
    }
  }
  return sums;
}

// Refuse what is not of this shape, or not of the same dtype and device as the first argument.
inline void check(const char* name, const at::Tensor& t, at::IntArrayRef shape, const at::Tensor& like) {
  TORCH_CHECK(t.sizes() == shape, name, " must be of shape ", shape, ", not ", t.sizes());
  TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, " must be ", like.scalar_type(), ", not ", t.scalar_type());
  TORCH_CHECK(t.device() == like.device(), name, " must be on ", like.device(), ", not ", t.device());
}

// Refuse what can't be written to row by row.
inline void check_buffer(const char* name, const at::Tensor& t, at::IntArrayRef shape, const at::Tensor& like) {
  check(name, t, shape, like);
  TORCH_CHECK(t.stride(-1) == 1 || t.size(-1) <= 1, name, " must have its channels side by side");
}

inline void check_sequence(const char* name, const at::Tensor& t) {
  TORCH_CHECK(t.dim() == 3, name, " must be [images, tokens, channels], not of shape ", t.sizes());
}

// Channels side by side; the strides of images and tokens may be any.
inline at::Tensor rows(const at::Tensor& t) { return t.stride(-1) == 1 ? t : t.contiguous(); }

#define VIM_DISPATCH(type, ...)                          \
  if ((type) == at::kFloat) {                            \
    using scalar_t = float;                              \
    __VA_ARGS__;                                         \
  } else {                                               \
    TORCH_CHECK((type) == at::kDouble, "fp32 or fp64");  \
    using scalar_t = double;                             \
    __VA_ARGS__;                                         \
  }

}  // namespace vim
