// Fusing the tokens that `match` chose, forward and backward: hidden, residual and sizes in one operation.
//
// Means are computed in fp32 or better, and written in the dtype of the tokens. Sources are added in the order of the
// matching, so that the sums are those of the definition.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstring>
#include <tuple>
#include <type_traits>
#include <vector>

#include "merge.h"
#include "tokens.h"

namespace vim {
namespace {

// Where the tokens go, checked once for all that moves.
struct Map {
  at::Tensor keep_, source_, index_;
  const int64_t *keep, *source, *index;
  int64_t images, length, left, fused;

  Map(const at::Tensor& k, const at::Tensor& s, const at::Tensor& i)
      : keep_(k.contiguous()), source_(s.contiguous()), index_(i.contiguous()) {
    for (const auto& t : {k, s, i}) {
      TORCH_CHECK(t.dim() == 2 && t.scalar_type() == at::kLong && t.is_cpu(), "positions must be int64 on the CPU");
    }
    images = i.size(0), length = i.size(1), left = k.size(1), fused = s.size(1);
    TORCH_CHECK(
        k.size(0) == images && s.size(0) == images && left + fused == length, "keep ", k.sizes(), " and source ",
        s.sizes(), " are not the tokens of index ", i.sizes());
    keep = keep_.const_data_ptr<int64_t>();
    source = source_.const_data_ptr<int64_t>();
    index = index_.const_data_ptr<int64_t>();
    in_range(keep, images * left, length), in_range(source, images * fused, length);
    in_range(index, images * length, left);
  }
  static void in_range(const int64_t* positions, int64_t count, int64_t end) {
    for (int64_t i = 0; i < count; ++i) {
      TORCH_CHECK(positions[i] >= 0 && positions[i] < end, "no token at ", positions[i], " of ", end);
    }
  }
  // body(image) for all images, shared out to threads.
  template <typename Body>
  void for_each_image(const Body& body) const {
    at::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) body(image);
    });
  }
};

// A size [images, tokens] summed over what fuses, and if asked for, each token's share in its sum.
template <typename size_t_>
struct Sizes {
  std::vector<size_t_> share;
  at::Tensor total;

  Sizes(const Map& map, const at::Tensor& size, bool with_shares) : share(with_shares ? map.images * map.length : 0) {
    total = at::empty({map.images, map.left}, size.options());
    const auto size_ = size.contiguous();
    const size_t_* from = size_.const_data_ptr<size_t_>();
    size_t_* sums = total.mutable_data_ptr<size_t_>();
    for (int64_t image = 0; image < map.images; ++image) {
      const int64_t row = image * map.length;
      size_t_* sum = sums + image * map.left;
      for (int64_t t = 0; t < map.left; ++t) sum[t] = from[row + map.keep[image * map.left + t]];
      for (int64_t i = 0; i < map.fused; ++i) {
        const int64_t s = map.source[image * map.fused + i];
        sum[map.index[row + s]] += from[row + s];
      }
      if (!with_shares) continue;
      for (int64_t i = 0; i < map.length; ++i) share[row + i] = from[row + i] / sum[map.index[row + i]];
    }
  }
};

// How many tokens each of those left is made of.
std::vector<int64_t> counts(const Map& map) {
  std::vector<int64_t> count(map.images * map.left, 1);
  for (int64_t image = 0; image < map.images; ++image) {
    const int64_t* index = map.index + image * map.length;
    const int64_t* source = map.source + image * map.fused;
    for (int64_t i = 0; i < map.fused; ++i) ++count[image * map.left + index[source[i]]];
  }
  return count;
}

// How many tokens from `first` on stand `alone` and lie side by side at their positions: they move at once.
template <typename Alone>
int64_t run_from(const int64_t* positions, int64_t first, int64_t end, const Alone& alone) {
  int64_t i = first;
  while (i < end && alone(i) && positions[i] == positions[first] + (i - first)) ++i;
  return i - first;
}

// Means by number if `share` is null, else sums of the tokens times their shares.
template <typename scalar_t, typename size_t_>
at::Tensor merge_one(const Map& map, const at::Tensor& x, const size_t_* share, const std::vector<int64_t>& count) {
  using wide_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
  const int64_t width = x.size(2);
  const auto x_ = x.contiguous();
  auto out = at::empty({map.images, map.left, width}, x_.options());
  const scalar_t* from = x_.const_data_ptr<scalar_t>();
  scalar_t* to = out.mutable_data_ptr<scalar_t>();
  map.for_each_image([&](int64_t image) {
    const int64_t row = image * map.length, out_row = image * map.left;
    std::vector<int64_t> sum_of(map.left, -1);  // which sum a target's is
    std::vector<wide_t> sums;
    const auto add = [&](wide_t* sum, int64_t token) {
      const scalar_t* value = from + (row + token) * width;
      if (share) {
        const wide_t weight = static_cast<wide_t>(share[row + token]);
        for (int64_t c = 0; c < width; ++c) sum[c] += static_cast<wide_t>(value[c]) * weight;
      } else {
        for (int64_t c = 0; c < width; ++c) sum[c] += static_cast<wide_t>(value[c]);
      }
    };
    sums.reserve(map.fused * width);
    for (int64_t i = 0; i < map.fused; ++i) {
      const int64_t s = map.source[image * map.fused + i], t = map.index[row + s];
      if (sum_of[t] < 0) {
        sum_of[t] = static_cast<int64_t>(sums.size());
        sums.resize(sums.size() + width, wide_t(-0.0));  // minus zero plus a value is that value, whatever its sign
        add(sums.data() + sum_of[t], map.keep[out_row + t]);
      }
      add(sums.data() + sum_of[t], s);
    }
    const int64_t* keep = map.keep + out_row;
    const auto alone = [&](int64_t t) { return sum_of[t] < 0; };
    for (int64_t t = 0; t < map.left; ++t) {
      scalar_t* token = to + (out_row + t) * width;
      if (const int64_t run = run_from(keep, t, map.left, alone)) {
        std::memcpy(token, from + (row + keep[t]) * width, run * width * sizeof(scalar_t));
        t += run - 1;
        continue;
      }
      const wide_t divisor = share ? wide_t(1) : static_cast<wide_t>(count[out_row + t]);
      const wide_t* sum = sums.data() + sum_of[t];
      for (int64_t c = 0; c < width; ++c) token[c] = static_cast<scalar_t>(sum[c] / divisor);
    }
  });
  return out;
}

template <typename scalar_t, typename size_t_>
at::Tensor spread_one(const Map& map, const at::Tensor& grad, const size_t_* share, const std::vector<int64_t>& count) {
  using wide_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
  const int64_t width = grad.size(2);
  const auto grad_ = grad.contiguous();
  auto out = at::empty({map.images, map.length, width}, grad_.options());
  const scalar_t* from = grad_.const_data_ptr<scalar_t>();
  scalar_t* to = out.mutable_data_ptr<scalar_t>();
  map.for_each_image([&](int64_t image) {
    const int64_t row = image * map.length, out_row = image * map.left;
    const int64_t* index = map.index + row;
    const auto alone = [&](int64_t i) { return count[out_row + index[i]] == 1; };
    for (int64_t i = 0; i < map.length; ++i) {
      const int64_t merged = out_row + index[i];
      const scalar_t* value = from + merged * width;
      scalar_t* token = to + (row + i) * width;
      if (const int64_t run = run_from(index, i, map.length, alone)) {
        std::memcpy(token, value, run * width * sizeof(scalar_t));
        i += run - 1;
      } else if (share) {
        const wide_t weight = static_cast<wide_t>(share[row + i]);
        for (int64_t c = 0; c < width; ++c) token[c] = static_cast<scalar_t>(static_cast<wide_t>(value[c]) * weight);
      } else {
        const wide_t divisor = static_cast<wide_t>(count[merged]);
        for (int64_t c = 0; c < width; ++c) token[c] = static_cast<scalar_t>(static_cast<wide_t>(value[c]) / divisor);
      }
    }
  });
  return out;
}

void check_fits(const char* name, const at::Tensor& x, int64_t images, int64_t tokens) {
  check_tokens(name, x);
  TORCH_CHECK(x.is_cpu(), name, " must be on the CPU");
  TORCH_CHECK(
      x.size(0) == images && x.size(1) == tokens, name, " must be of ", images, " images and ", tokens,
      " tokens, not of shape ", x.sizes());
}

void check_size(const Map& map, const at::Tensor& size) {
  TORCH_CHECK(size.sizes() == at::IntArrayRef({map.images, map.length}), "size must be [images, tokens]");
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> merge(
    const at::Tensor& hidden, const at::Tensor& residual, const at::Tensor& size, const at::Tensor& keep,
    const at::Tensor& source, const at::Tensor& index, bool by_size) {
  const Map map(keep, source, index);
  check_fits("hidden", hidden, map.images, map.length), check_fits("residual", residual, map.images, map.length);
  check_size(map, size);
  const auto count = counts(map);
  at::Tensor merged_hidden, merged_residual, total;
  VIM_FLOATING(size.scalar_type(), size_t_, {
    const Sizes<size_t_> sizes(map, size, by_size);
    const size_t_* share = by_size ? sizes.share.data() : nullptr;
    VIM_TOKENS(hidden.scalar_type(), merged_hidden = merge_one<scalar_t>(map, hidden, share, count));
    VIM_TOKENS(residual.scalar_type(), merged_residual = merge_one<scalar_t>(map, residual, share, count));
    total = sizes.total;
  });
  return {merged_hidden, merged_residual, total};
}

std::tuple<at::Tensor, at::Tensor> merge_backward(
    const at::Tensor& dhidden, const at::Tensor& dresidual, const at::Tensor& size, const at::Tensor& keep,
    const at::Tensor& source, const at::Tensor& index, bool by_size) {
  const Map map(keep, source, index);
  check_fits("dhidden", dhidden, map.images, map.left), check_fits("dresidual", dresidual, map.images, map.left);
  check_size(map, size);
  const auto count = counts(map);
  at::Tensor hidden, residual;
  VIM_FLOATING(size.scalar_type(), size_t_, {
    const Sizes<size_t_> sizes(map, size, by_size);
    const size_t_* share = by_size ? sizes.share.data() : nullptr;
    VIM_TOKENS(dhidden.scalar_type(), hidden = spread_one<scalar_t>(map, dhidden, share, count));
    VIM_TOKENS(dresidual.scalar_type(), residual = spread_one<scalar_t>(map, dresidual, share, count));
  });
  return {hidden, residual};
}

TORCH_LIBRARY_FRAGMENT(vim, m) {
  m.def(
      "merge(Tensor hidden, Tensor residual, Tensor size, Tensor keep, Tensor source, Tensor index, bool by_size) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "merge_backward(Tensor dhidden, Tensor dresidual, Tensor size, Tensor keep, Tensor source, Tensor index, "
      "bool by_size) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(vim, CPU, m) {
  m.impl("merge", &merge);
  m.impl("merge_backward", &merge_backward);
}

}  // namespace vim
