// Which tokens fuse: all of fusion/matching.py's `match` in one operation, for the cosine and survivors in order.
//
// Cosines are those of the definition, computed in fp64. Those of tokens in fp32 or less are rounded to fp32: so both
// compare the same numbers, although they sum in different orders.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "pairs.h"
#include "tokens.h"

namespace vim {
namespace {

// An image's tokens in turn, class tokens aside: the 1st, 3rd, ... are possible sources, the 2nd, 4th, ... targets.
struct Sides {
  std::vector<int64_t> a, b;

  Sides(int64_t patches) : a((patches + 1) / 2), b(patches / 2) {}

  void operator()(const int64_t* cls, int64_t classes, int64_t length) {
    is_class_.assign(length, false);
    for (int64_t k = 0; k < classes; ++k) {
      TORCH_CHECK(cls[k] >= 0 && cls[k] < length, "a class token at ", cls[k], " of ", length, " tokens");
      TORCH_CHECK(!is_class_[cls[k]], "two class tokens at ", cls[k]);
      is_class_[cls[k]] = true;
    }
    int64_t place = 0;
    for (int64_t i = 0; i < length; ++i) {
      if (is_class_[i]) continue;
      (place % 2 ? b : a)[place / 2] = i;
      ++place;
    }
  }

 private:
  std::vector<char> is_class_;
};

// Where every token goes if the sources go into their targets and the others close up.
void close_up(
    const int64_t* source, const int64_t* target, int64_t length, int64_t r, int64_t* keep, int64_t* index,
    int64_t* count) {
  std::fill(index, index + length, 0);
  for (int64_t i = 0; i < r; ++i) index[source[i]] = -1;
  int64_t left = 0;
  for (int64_t i = 0; i < length; ++i) {
    if (index[i] < 0) continue;
    keep[left] = i;
    count[left] = 1;
    index[i] = left++;
  }
  for (int64_t i = 0; i < r; ++i) {
    index[source[i]] = index[target[i]];
    ++count[index[target[i]]];
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> match(
    const at::Tensor& metric, const at::Tensor& cls_index, int64_t r) {
  check_tokens("metric", metric);
  const int64_t images = metric.size(0), length = metric.size(1);
  TORCH_CHECK(
      cls_index.dim() == 2 && cls_index.size(0) == images && cls_index.size(1) <= length,
      "cls_index must be [images, class tokens], not of shape ", cls_index.sizes());
  TORCH_CHECK(cls_index.scalar_type() == at::kLong && cls_index.device() == metric.device(), "cls_index: wrong dtype or device");
  const int64_t patches = length - cls_index.size(1);
  TORCH_CHECK(r >= 1 && r <= patches / 2, "can fuse 1 to ", patches / 2, " tokens, not ", r);
  const auto like = cls_index.options();
  auto source = at::empty({images, r}, like), target = at::empty({images, r}, like);
  auto keep = at::empty({images, length - r}, like), count = at::empty({images, length - r}, like);
  auto index = at::empty({images, length}, like), classes = at::empty(cls_index.sizes(), like);

  const auto metric_ = metric.contiguous(), cls_index_ = cls_index.contiguous();
  const int64_t* old_classes = cls_index_.const_data_ptr<int64_t>();
  int64_t *sources = source.mutable_data_ptr<int64_t>(), *targets = target.mutable_data_ptr<int64_t>();
  int64_t *keeps = keep.mutable_data_ptr<int64_t>(), *indices = index.mutable_data_ptr<int64_t>();
  int64_t *counts = count.mutable_data_ptr<int64_t>(), *new_classes = classes.mutable_data_ptr<int64_t>();
  VIM_TOKENS(metric.scalar_type(), {
    const auto tokens = metric_.const_data_ptr<scalar_t>();
    at::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
      Sides sides(patches);
      Pairs<scalar_t> find_pairs(sides.a.size(), sides.b.size(), metric.size(2));
      for (int64_t image = begin; image < end; ++image) {
        const int64_t left = image * (length - r), first_class = image * cls_index.size(1);
        int64_t *from = sources + image * r, *to = targets + image * r, *place = indices + image * length;
        sides(old_classes + first_class, cls_index.size(1), length);
        find_pairs(tokens + image * length * metric.size(2), sides.a.data(), sides.b.data(), r, from, to);
        close_up(from, to, length, r, keeps + left, place, counts + left);
        for (int64_t k = first_class; k < first_class + cls_index.size(1); ++k) new_classes[k] = place[old_classes[k]];
      }
    });
  });
  return {source, target, keep, index, classes, count};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(vim, m) {
  m.def(
      "match(Tensor metric, Tensor cls_index, int r) "
      "-> (Tensor source, Tensor target, Tensor keep, Tensor index, Tensor classes, Tensor count)");
}

TORCH_LIBRARY_IMPL(vim, CPU, m) { m.impl("match", &match); }

}  // namespace vim
