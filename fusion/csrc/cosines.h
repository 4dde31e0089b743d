// The cosines between tokens of an image, in fp64. Each is summed in one order, whatever the number of threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace vim {

constexpr double kLeastNorm = 1e-12;  // as in F.normalize
constexpr int64_t kLanes = 4, kRows = 4, kColumns = 2 * kLanes;
typedef double Lanes __attribute__((vector_size(kLanes * sizeof(double))));

inline Lanes load(const double* from) {
  Lanes value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Products of `rows` rows of a [, width] with b [width, kColumns], in registers.
template <int64_t rows>
void product(const double* a, int64_t width, int64_t row_stride, const double* b, int64_t columns, double* out) {
  Lanes sums[rows][2] = {};
  for (int64_t c = 0; c < width; ++c) {
    const Lanes left = load(b + c * kColumns), right = load(b + c * kColumns + kLanes);
    for (int64_t i = 0; i < rows; ++i) {
      sums[i][0] += left * a[i * row_stride + c];
      sums[i][1] += right * a[i * row_stride + c];
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t half = 0; half < 2; ++half) {
      std::memcpy(out + i * columns + half * kLanes, &sums[i][half], sizeof(Lanes));
    }
  }
}

class Cosines {
 public:
  const int64_t n, m, columns;  // columns: m, rounded up

  Cosines(int64_t n, int64_t m, int64_t width)
      : n(n), m(m), columns(round_up(m, kColumns)), width_(width), stride_(round_up(width, kLanes)),
        a_(n * stride_), b_(width * columns), unit_(stride_), cosines_(n * columns) {}

  // The cosines [n, columns] of the tokens at a to those at b; what is beyond m means nothing.
  template <typename scalar_t>
  const double* operator()(const scalar_t* tokens, const int64_t* a, const int64_t* b) {
    for (int64_t i = 0; i < n; ++i) take_unit(tokens + a[i] * width_, a_.data() + i * stride_);
    for (int64_t j = 0; j < m; ++j) {
      take_unit(tokens + b[j] * width_, unit_.data());
      double* to = panel(j) + j % kColumns;
      for (int64_t c = 0; c < width_; ++c) to[c * kColumns] = unit_[c];
    }
    for (int64_t j = 0; j < columns; j += kColumns) {
      int64_t i = 0;
      for (; i + kRows <= n; i += kRows) product_at<kRows>(i, j);
      for (; i < n; ++i) product_at<1>(i, j);
    }
    return cosines_.data();
  }

 private:
  const int64_t width_, stride_;
  std::vector<double> a_, b_, unit_, cosines_;  // b_ [columns / kColumns, width, kColumns]

  double* panel(int64_t j) { return b_.data() + j / kColumns * width_ * kColumns; }

  // Write the token divided by its length; zeros follow it up to the stride.
  template <typename scalar_t>
  void take_unit(const scalar_t* token, double* unit) const {
    for (int64_t c = 0; c < width_; ++c) unit[c] = static_cast<double>(token[c]);
    Lanes squares{};
    for (int64_t c = 0; c < stride_; c += kLanes) squares += load(unit + c) * load(unit + c);
    const double norm = std::sqrt(squares[0] + squares[1] + squares[2] + squares[3]);
    const double divisor = norm < kLeastNorm ? kLeastNorm : norm;
    for (int64_t c = 0; c < width_; ++c) unit[c] /= divisor;
  }

  template <int64_t rows>
  void product_at(int64_t i, int64_t j) {
    const double* a = a_.data() + i * stride_;
    product<rows>(a, width_, stride_, panel(j), columns, cosines_.data() + i * columns + j);
  }
};

}  // namespace vim
