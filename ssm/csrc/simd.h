// Sixteen channels side by side: vectors of GCC and Clang, which become AVX-512, AVX2, NEON or whatever there is.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace vim {

// Vectors wider than the processor's pass between inlined functions only, so their calling convention doesn't matter.
#pragma GCC diagnostic ignored "-Wpsabi"

template <typename scalar_t>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int width = 16;
  typedef float vec __attribute__((vector_size(64)));
  typedef float half __attribute__((vector_size(32)));
  typedef int32_t bits __attribute__((vector_size(64)));
};

template <>
struct Simd<double> {
  static constexpr int width = 8;
  typedef double vec __attribute__((vector_size(64)));
  typedef double half __attribute__((vector_size(32)));
  typedef int64_t bits __attribute__((vector_size(64)));
};

template <typename scalar_t>
using Vec = typename Simd<scalar_t>::vec;

template <typename scalar_t>
using Half = typename Simd<scalar_t>::half;

#define VIM_INLINE inline __attribute__((always_inline))

template <typename scalar_t>
VIM_INLINE Vec<scalar_t> splat(scalar_t value) {
  return Vec<scalar_t>{} + value;
}

// The first `count` channels at `from`, zeros after them.
template <typename scalar_t>
VIM_INLINE Vec<scalar_t> load(const scalar_t* from, int count = Simd<scalar_t>::width) {
  Vec<scalar_t> value{};
  if (count == Simd<scalar_t>::width) {
    std::memcpy(&value, from, sizeof(value));
  } else {
    std::memcpy(&value, from, count * sizeof(scalar_t));
  }
  return value;
}

template <typename scalar_t>
VIM_INLINE void store(scalar_t* to, Vec<scalar_t> value, int count = Simd<scalar_t>::width) {
  if (count == Simd<scalar_t>::width) {
    std::memcpy(to, &value, sizeof(value));
  } else {
    std::memcpy(to, &value, count * sizeof(scalar_t));
  }
}

// Half as many channels with the same sum: what is only summed in the end needs half the room until then.
template <typename scalar_t>
VIM_INLINE Half<scalar_t> fold(Vec<scalar_t> value) {
  Half<scalar_t> halves[2];
  std::memcpy(halves, &value, sizeof(value));
  return halves[0] + halves[1];
}

// All channels' sum, by halves: one after the other would wait for each addition.
template <typename scalar_t>
VIM_INLINE scalar_t sum(Half<scalar_t> value) {
  typedef scalar_t quarter_t __attribute__((vector_size(16)));
  quarter_t quarters[2];
  std::memcpy(quarters, &value, sizeof(value));
  const quarter_t quarter = quarters[0] + quarters[1];
  scalar_t total = 0;
  for (size_t i = 0; i < 16 / sizeof(scalar_t); ++i) total += quarter[i];
  return total;
}

// The value stands second: then one that is not a number stays so.
template <typename V>
VIM_INLINE V min(V bound, V value) {
  return bound < value ? bound : value;
}

template <typename V>
VIM_INLINE V max(V bound, V value) {
  return bound > value ? bound : value;
}

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;
constexpr int kMaxExponent = 127;  // of a finite fp32

// 2^x to about one unit in the last place, for x below 128: x = n + r, 2^r by the polynomial of least relative error
// (with 1 at 0, so that no decay stays none), 2^n through the exponent's bits.
VIM_INLINE Vec<float> exp2(Vec<float> x) {
  using bits = Simd<float>::bits;
  x = max(splat(-126.0f), x);
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Vec<float> shifted = x + magic;
  const Vec<float> r = x - (shifted - magic);
  Vec<float> p = splat(1.3264728e-3f);
  p = p * r + 9.6715126e-3f;
  p = p * r + 5.5507337e-2f;
  p = p * r + 2.4022242e-1f;
  p = p * r + 6.9314698e-1f;
  p = p * r + 1.0f;
  // The whole number stands in the low bits of `shifted`; moved to the exponent it multiplies p by 2^n.
  bits exponent, result;
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  std::memcpy(&result, &p, sizeof(result));
  result += exponent << 23;
  std::memcpy(&p, &result, sizeof(p));
  return p;
}

// fp64 serves checks of gradients, so it may be slow.
VIM_INLINE Vec<double> exp2(Vec<double> x) {
  for (int i = 0; i < Simd<double>::width; ++i) x[i] = std::exp2(x[i]);
  return x;
}

template <typename scalar_t>
VIM_INLINE Vec<scalar_t> exp(Vec<scalar_t> x) {
  return exp2(min(splat<scalar_t>(kMaxExponent), x * scalar_t(kLog2E)));
}

// log(1 + t) for t in [0, 1]: t times the polynomial of least relative error, which keeps the precision of small t.
VIM_INLINE Vec<float> log1p_unit(Vec<float> t) {
  Vec<float> p = splat(5.3648166e-3f);
  p = p * t - 3.0065764e-2f;
  p = p * t + 7.9204492e-2f;
  p = p * t - 1.3753799e-1f;
  p = p * t + 1.9153653e-1f;
  p = p * t - 2.4857163e-1f;
  p = p * t + 3.3321324e-1f;
  p = p * t - 4.9999648e-1f;
  p = p * t + 1.0f;
  return p * t;
}

VIM_INLINE Vec<double> log1p_unit(Vec<double> t) {
  for (int i = 0; i < Simd<double>::width; ++i) t[i] = std::log1p(t[i]);
  return t;
}

template <typename V>
struct Activation {
  V value;
  V slope;
};

// log(1 + e^x) and its derivative, the sigmoid, from one exponential that can't overflow.
template <typename scalar_t>
VIM_INLINE Activation<Vec<scalar_t>> softplus(Vec<scalar_t> x) {
  const Vec<scalar_t> zero{};
  const Vec<scalar_t> t = exp<scalar_t>(x > zero ? -x : x);
  const Vec<scalar_t> reciprocal = scalar_t(1) / (t + scalar_t(1));
  return {max(zero, x) + log1p_unit(t), x > zero ? reciprocal : t * reciprocal};
}

// x sigmoid(x) and its derivative.
template <typename scalar_t>
VIM_INLINE Activation<Vec<scalar_t>> silu(Vec<scalar_t> x) {
  const Vec<scalar_t> sigmoid = scalar_t(1) / (exp<scalar_t>(-x) + scalar_t(1));
  return {x * sigmoid, sigmoid * (x * (scalar_t(1) - sigmoid) + scalar_t(1))};
}

}  // namespace vim
