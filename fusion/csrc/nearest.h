// For each token of one side the most similar one of the other side, by the cosine.
//
// Cosines count as computed in fp64, and rounded to fp32 if the tokens are fp32 or less. Few need to be: all are first
// computed in fp32, whose error has a bound, and that mostly leaves one token that can be the nearest. Each is summed
// in one order, whatever the number of threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

namespace vim {

constexpr double kLeastNorm = 1e-12;  // as in F.normalize
#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
constexpr int64_t kRows = 4, kStep = 8;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

inline int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Products of `rows` rows of a [, width] with b [width, kLanes], in registers.
template <int64_t rows>
void product(const float* a, int64_t width, int64_t row_stride, const float* b, int64_t columns, float* out) {
  Lanes sums[rows] = {};
  for (int64_t c = 0; c < width; ++c) {
    Lanes of_b;
    std::memcpy(&of_b, b + c * kLanes, sizeof(of_b));
    for (int64_t i = 0; i < rows; ++i) sums[i] += of_b * a[i * row_stride + c];
  }
  for (int64_t i = 0; i < rows; ++i) std::memcpy(out + i * columns, &sums[i], sizeof(Lanes));
}

// The sum of a[c] b[c] in fp64, over a multiple of kStep.
template <typename value_t>
double dot(const value_t* a, const value_t* b, int64_t count) {
  typedef value_t Narrow __attribute__((vector_size(kStep / 2 * sizeof(value_t))));
  typedef double Wide __attribute__((vector_size(kStep / 2 * sizeof(double))));
  Wide sums[2] = {};  // two, or each addition would wait for the one before
  for (int64_t c = 0; c < count; c += kStep) {
    Narrow left[2], right[2];
    std::memcpy(left, a + c, sizeof(left)), std::memcpy(right, b + c, sizeof(right));
    for (int half = 0; half < 2; ++half) {
      sums[half] += __builtin_convertvector(left[half], Wide) * __builtin_convertvector(right[half], Wide);
    }
  }
  const Wide total = sums[0] + sums[1];
  return (total[0] + total[1]) + (total[2] + total[3]);
}

template <typename scalar_t>
class Nearest {
 public:
  // The type in which cosines are compared.
  using value_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

  Nearest(int64_t n, int64_t m, int64_t width)
      : n_(n), m_(m), width_(width), stride_(round_up(width, kStep)), columns_(round_up(m, kLanes)),
        slack_(static_cast<float>(width + 4) * std::numeric_limits<float>::epsilon()), a_(n * stride_),
        b_(m * stride_), a_norm_(n), b_norm_(m), unit_(width), a_unit_(n * width),
        b_unit_(width * columns_, std::numeric_limits<float>::quiet_NaN()), rough_(n * columns_) {}

  // Write for each of the n tokens at a the place of the nearest among the m at b, the first of equal ones, and their
  // cosine. What is not a number is larger than all, as for torch.max.
  void operator()(const scalar_t* tokens, const int64_t* a, const int64_t* b, int64_t* nearest, value_t* cosine) {
    for (int64_t i = 0; i < n_; ++i) {
      a_norm_[i] = take(tokens + a[i] * width_, a_.data() + i * stride_, a_unit_.data() + i * width_);
    }
    for (int64_t j = 0; j < m_; ++j) {
      b_norm_[j] = take(tokens + b[j] * width_, b_.data() + j * stride_, unit_.data());
      float* column = b_unit_.data() + j / kLanes * width_ * kLanes + j % kLanes;
      for (int64_t c = 0; c < width_; ++c) column[c * kLanes] = unit_[c];
    }
    for (int64_t j = 0; j < columns_; j += kLanes) {
      int64_t i = 0;
      for (; i + kRows <= n_; i += kRows) product_at<kRows>(i, j);
      for (; i < n_; ++i) product_at<1>(i, j);
    }
    for (int64_t i = 0; i < n_; ++i) choose(i, nearest[i], cosine[i]);
  }

 private:
  const int64_t n_, m_, width_, stride_, columns_;
  const float slack_;  // twice the error of a cosine in fp32, by the number of roundings
  std::vector<value_t> a_, b_;
  std::vector<double> a_norm_, b_norm_;
  std::vector<float> unit_, a_unit_, b_unit_, rough_;  // b_unit_ [columns / kLanes, width, kLanes]; not a number beyond m

  // Write a token's values, and these divided by its norm. Return what is left to divide cosines by: fp64 divides the
  // values themselves, so that those of vectors of one direction are the same.
  double take(const scalar_t* token, value_t* values, float* unit) const {
    for (int64_t c = 0; c < width_; ++c) values[c] = static_cast<value_t>(token[c]);
    double norm = std::sqrt(dot(values, values, stride_));
    norm = norm < kLeastNorm ? kLeastNorm : norm;
    if constexpr (std::is_same_v<scalar_t, double>) {
      for (int64_t c = 0; c < width_; ++c) values[c] /= norm;
      norm = 1;
    }
    const double scale = 1 / norm;
    for (int64_t c = 0; c < width_; ++c) unit[c] = static_cast<float>(values[c] * scale);
    return norm;
  }

  template <int64_t rows>
  void product_at(int64_t i, int64_t j) {
    const float* b = b_unit_.data() + j * width_;
    product<rows>(a_unit_.data() + i * width_, width_, width_, b, columns_, rough_.data() + i * columns_ + j);
  }

  // The largest of a row, whatever is not a number; minus infinity if none is one.
  float largest(const float* row) const {
    Lanes most = Lanes{} - std::numeric_limits<float>::infinity();
    for (int64_t j = 0; j < columns_; j += kLanes) {
      Lanes next;
      std::memcpy(&next, row + j, sizeof(next));
      most = next > most ? next : most;
    }
    float value = most[0];
    for (int64_t lane = 1; lane < kLanes; ++lane) value = std::max(value, most[lane]);
    return value;
  }

  void choose(int64_t i, int64_t& nearest, value_t& cosine) const {
    const float* rough = rough_.data() + i * columns_;
    const float least = largest(rough) - slack_;
    nearest = -1;
    for (int64_t j = 0; j < m_; ++j) {
      if (rough[j] < least) continue;
      const double product = dot(a_.data() + i * stride_, b_.data() + j * stride_, stride_);
      const value_t exact = static_cast<value_t>(product / (a_norm_[i] * b_norm_[j]));
      if (nearest >= 0 && exact <= cosine) continue;
      nearest = j, cosine = exact;
      if (std::isnan(exact)) return;
    }
  }
};

}  // namespace vim
