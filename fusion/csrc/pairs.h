// The pairs of tokens that fuse: each possible source with the most similar target, by the cosine, and of these pairs
// the most similar ones.
//
// Cosines count as computed in fp64, and rounded to fp32 if the tokens are fp32 or less. Few need to be: all are first
// computed in fp32, roughly but with a bound on the error, and that leaves few pairs that can be among the strongest.
// Each cosine is summed in one order, whatever the number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <limits>
#include <type_traits>
#include <vector>

namespace vim {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
constexpr int64_t kRows = 4, kColumns = 2 * kLanes;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

inline int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

inline Lanes load(const float* from) {
  Lanes value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

// Products of `rows` rows of a [, width] with b [width, kColumns], in registers.
template <int64_t rows>
void product(const float* a, int64_t width, int64_t row_stride, const float* b, int64_t columns, float* out) {
  Lanes sums[rows][2] = {};
  for (int64_t c = 0; c < width; ++c) {
    const Lanes left = load(b + c * kColumns), right = load(b + c * kColumns + kLanes);
    for (int64_t i = 0; i < rows; ++i) {
      sums[i][0] += left * a[i * row_stride + c];
      sums[i][1] += right * a[i * row_stride + c];
    }
  }
  for (int64_t i = 0; i < rows; ++i) std::memcpy(out + i * columns, sums[i], sizeof(sums[i]));
}

// The sum of a[c] b[c], computed as sum_t, over a multiple of 8.
template <typename sum_t, typename value_t>
sum_t dot(const value_t* a, const value_t* b, int64_t count) {
  typedef sum_t Wide __attribute__((vector_size(4 * sizeof(sum_t))));
  typedef value_t Narrow __attribute__((vector_size(4 * sizeof(value_t))));
  Wide sums[2] = {};  // two, or each addition would wait for the one before
  for (int64_t c = 0; c < count; c += 8) {
    Narrow left[2], right[2];
    std::memcpy(left, a + c, sizeof(left)), std::memcpy(right, b + c, sizeof(right));
    for (int half = 0; half < 2; ++half) {
      sums[half] += __builtin_convertvector(left[half], Wide) * __builtin_convertvector(right[half], Wide);
    }
  }
  const Wide total = sums[0] + sums[1];
  return (total[0] + total[1]) + (total[2] + total[3]);
}

// Finds the pairs of one image after another, of n possible sources and m possible targets.
template <typename scalar_t>
class Pairs {
 public:
  Pairs(int64_t n, int64_t m, int64_t width)
      : n_(n), m_(m), width_(width), stride_(round_up(width, 8)), columns_(round_up(m, kColumns)),
        slack_(static_cast<float>(2 * width + 16) * std::numeric_limits<float>::epsilon()), a_(n * stride_),
        b_(m * stride_), a_unit_(n * stride_), b_unit_(stride_), panels_(width * columns_, kUnsure),
        rough_(n * columns_), best_(n), cosine_(n), a_norm_(n), b_norm_(m), nearest_(n) {}

  // Write the r strongest pairs of tokens at a and at b, the strongest first, and the earlier place of equal ones. What
  // is not a number is larger than all, as for torch.max.
  void operator()(const scalar_t* tokens, const int64_t* a, const int64_t* b, int64_t r, int64_t* source, int64_t* target) {
    std::fill(a_norm_.begin(), a_norm_.end(), 0), std::fill(b_norm_.begin(), b_norm_.end(), 0);
    bool b_sure = true;
    for (int64_t i = 0; i < n_; ++i) {
      best_[i] = take(tokens + a[i] * width_, a_.data() + i * stride_, a_unit_.data() + i * stride_) ? 0 : kUnsure;
    }
    for (int64_t j = 0; j < m_; ++j) {
      b_sure &= take(tokens + b[j] * width_, b_.data() + j * stride_, b_unit_.data());
      float* column = panels_.data() + j / kColumns * width_ * kColumns + j % kColumns;
      for (int64_t c = 0; c < width_; ++c) column[c * kColumns] = b_unit_[c];
    }
    multiply();
    for (int64_t i = 0; i < n_; ++i) best_[i] += largest(rough_.data() + i * columns_);
    choose(b_sure ? strongest(r) - slack_ : -std::numeric_limits<float>::infinity(), r);
    for (int64_t k = 0; k < r; ++k) {
      source[k] = a[order_[k]];
      target[k] = b[nearest_[order_[k]]];
    }
  }

 private:
  using value_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
  static constexpr float kUnsure = std::numeric_limits<float>::quiet_NaN();

  const int64_t n_, m_, width_, stride_, columns_;
  const float slack_;  // twice the largest error of a rough cosine, by the number of roundings
  std::vector<value_t> a_, b_;
  std::vector<float> a_unit_, b_unit_, panels_, rough_;  // panels_: the targets [columns / kColumns, width, kColumns]
  std::vector<float> best_;  // the rough cosine of each possible source and its nearest
  std::vector<value_t> cosine_;
  std::vector<double> a_norm_, b_norm_;  // zero until they are asked for
  std::vector<int64_t> nearest_, order_;

  // Write a token's values, and the token of length one in fp32. Return false if fp32 can't hold its length well; the
  // latter then has no numbers.
  bool take(const scalar_t* token, value_t* values, float* unit) const {
    for (int64_t c = 0; c < width_; ++c) values[c] = static_cast<value_t>(token[c]);
    const float squares = dot<float>(values, values, stride_);
    const bool sure = squares >= 1e-20f && squares <= 1e30f;
    const float scale = sure ? 1 / std::sqrt(squares) : kUnsure;
    for (int64_t c = 0; c < width_; ++c) unit[c] = static_cast<float>(values[c]) * scale;
    return sure;
  }

  void multiply() {
    for (int64_t j = 0; j < columns_; j += kColumns) {
      int64_t i = 0;
      for (; i + kRows <= n_; i += kRows) multiply_rows<kRows>(i, j);
      for (; i < n_; ++i) multiply_rows<1>(i, j);
    }
  }

  template <int64_t rows>
  void multiply_rows(int64_t i, int64_t j) {
    const float* b = panels_.data() + j * width_;
    product<rows>(a_unit_.data() + i * stride_, width_, stride_, b, columns_, rough_.data() + i * columns_ + j);
  }

  // The largest of a row's numbers; minus infinity if it has none.
  float largest(const float* row) const {
    Lanes most = Lanes{} - std::numeric_limits<float>::infinity();
    for (int64_t j = 0; j < columns_; j += kLanes) {
      const Lanes next = load(row + j);
      most = next > most ? next : most;
    }
    float lanes[kLanes];
    std::memcpy(lanes, &most, sizeof(lanes));
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
      for (int64_t i = 0; i < half; ++i) lanes[i] = std::max(lanes[i], lanes[i + half]);
    }
    return lanes[0];
  }

  // The r-th largest of the sources' best rough cosines, minus infinity if fewer are sure.
  float strongest(int64_t r) const {
    std::vector<float> sure;
    std::copy_if(best_.begin(), best_.end(), std::back_inserter(sure), [](float best) { return !std::isnan(best); });
    if (static_cast<int64_t>(sure.size()) < r) return -std::numeric_limits<float>::infinity();
    std::nth_element(sure.begin(), sure.begin() + r - 1, sure.end(), std::greater<float>());
    return sure[r - 1];
  }

  // Find the nearest of each source whose rough cosine is not below `least`, and put the r strongest first.
  void choose(float least, int64_t r) {
    order_.clear();
    for (int64_t i = 0; i < n_; ++i) {
      if (best_[i] < least) continue;
      find_nearest(i);
      order_.push_back(i);
    }
    std::partial_sort(order_.begin(), order_.begin() + r, order_.end(), [&](int64_t i, int64_t j) {
      const value_t x = cosine_[i], y = cosine_[j];
      if (std::isnan(x) != std::isnan(y)) return std::isnan(x);
      return x > y || (!(x < y) && i < j);
    });
  }

  void find_nearest(int64_t i) {
    const float least = best_[i] - slack_;
    nearest_[i] = -1;
    for (int64_t j = 0; j < m_; ++j) {
      if (rough_[i * columns_ + j] < least) continue;
      const value_t exact = cosine(i, j);
      if (nearest_[i] >= 0 && exact <= cosine_[i]) continue;
      nearest_[i] = j, cosine_[i] = exact;
      if (std::isnan(exact)) return;
    }
  }

  // The cosine to be compared. fp64 divides each value, so that those of vectors of one direction are the same.
  value_t cosine(int64_t i, int64_t j) {
    const value_t *a = a_.data() + i * stride_, *b = b_.data() + j * stride_;
    const double a_norm = norm(a, a_norm_[i]), b_norm = norm(b, b_norm_[j]);
    if constexpr (std::is_same_v<value_t, double>) {
      double sum = 0;
      for (int64_t c = 0; c < width_; ++c) sum += a[c] / a_norm * (b[c] / b_norm);
      return sum;
    } else {
      return static_cast<value_t>(dot<double>(a, b, stride_) / (a_norm * b_norm));
    }
  }

  // The norm of a token, at least 1e-12 as in F.normalize; computed if `known` is zero, and then kept there.
  double norm(const value_t* token, double& known) const {
    if (known == 0) {
      known = std::sqrt(dot<double>(token, token, stride_));
      known = known < 1e-12 ? 1e-12 : known;
    }
    return known;
  }
};

}  // namespace vim
