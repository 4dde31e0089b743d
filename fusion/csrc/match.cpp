// Which tokens fuse: all of fusion/matching.py's `match` in one operation, for the cosine and survivors in order.
//
// Cosines are those of the definition, computed in fp64. Those of tokens in fp32 or less are rounded to fp32: so both
// compare the same numbers, although they sum in different orders.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <vector>

#include "nearest.h"
#include "tokens.h"

namespace vim {
namespace {

// The positions [images, count] of every other token, class tokens aside: the 1st, 3rd, ... or the 2nd, 4th, ...
struct Sides {
  std::vector<int64_t> a, b;
  int64_t n, m;

  Sides(const at::Tensor& cls_index, int64_t images, int64_t length) {
    const int64_t classes = cls_index.size(1), patches = length - classes;
    n = (patches + 1) / 2, m = patches / 2;
    a.reserve(images * n), b.reserve(images * m);
    const auto cls = cls_index.accessor<int64_t, 2>();
    std::vector<char> is_class(length);
    for (int64_t image = 0; image < images; ++image) {
      std::fill(is_class.begin(), is_class.end(), 0);
      for (int64_t k = 0; k < classes; ++k) {
        const int64_t at = cls[image][k];
        TORCH_CHECK(at >= 0 && at < length, "a class token at ", at, " of ", length, " tokens");
        TORCH_CHECK(!is_class[at], "two class tokens at ", at);
        is_class[at] = 1;
      }
      bool first = true;
      for (int64_t i = 0; i < length; ++i) {
        if (is_class[i]) continue;
        (first ? a : b).push_back(i);
        first = !first;
      }
    }
  }
};

// The r pairs of the largest cosines, the strongest first, and the earlier token of equal ones.
template <typename value_t>
void pair_up(
    const int64_t* nearest, const value_t* cosine, const int64_t* a, const int64_t* b, int64_t n, int64_t r,
    int64_t* source, int64_t* target) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + r, order.end(), [&](int64_t i, int64_t j) {
    if (std::isnan(cosine[i]) != std::isnan(cosine[j])) return std::isnan(cosine[i]);
    return cosine[i] > cosine[j] || (!(cosine[i] < cosine[j]) && i < j);
  });
  for (int64_t i = 0; i < r; ++i) {
    source[i] = a[order[i]];
    target[i] = b[nearest[order[i]]];
  }
}

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
  const Sides sides(cls_index, images, length);
  TORCH_CHECK(r >= 1 && r <= sides.m, "can fuse 1 to ", sides.m, " tokens, not ", r);
  const auto like = cls_index.options();
  auto source = at::empty({images, r}, like), target = at::empty({images, r}, like);
  auto keep = at::empty({images, length - r}, like), count = at::empty({images, length - r}, like);
  auto index = at::empty({images, length}, like), classes = at::empty(cls_index.sizes(), like);

  const auto metric_ = metric.contiguous();
  const auto cls = cls_index.accessor<int64_t, 2>();
  auto new_cls = classes.accessor<int64_t, 2>();
  int64_t *sources = source.mutable_data_ptr<int64_t>(), *targets = target.mutable_data_ptr<int64_t>();
  int64_t *keeps = keep.mutable_data_ptr<int64_t>(), *indices = index.mutable_data_ptr<int64_t>();
  int64_t* counts = count.mutable_data_ptr<int64_t>();
  VIM_TOKENS(metric.scalar_type(), {
    const auto tokens = metric_.const_data_ptr<scalar_t>();
    at::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
      Nearest<scalar_t> find(sides.n, sides.m, metric.size(2));
      std::vector<int64_t> nearest(sides.n);
      std::vector<typename Nearest<scalar_t>::value_t> cosine(sides.n);
      for (int64_t image = begin; image < end; ++image) {
        const int64_t *a = sides.a.data() + image * sides.n, *b = sides.b.data() + image * sides.m;
        int64_t *from = sources + image * r, *to = targets + image * r, *place = indices + image * length;
        find(tokens + image * length * metric.size(2), a, b, nearest.data(), cosine.data());
        pair_up(nearest.data(), cosine.data(), a, b, sides.n, r, from, to);
        close_up(from, to, length, r, keeps + image * (length - r), place, counts + image * (length - r));
        for (int64_t k = 0; k < cls_index.size(1); ++k) new_cls[image][k] = place[cls[image][k]];
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
