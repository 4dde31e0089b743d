// Channels side by side, as many as a register holds: vectors of GCC and Clang, for AVX-512, AVX2, NEON or what there is.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

namespace vim {

// Bytes in a register. GCC keeps longer vectors in memory, and compares them channel by channel.
#if defined(__AVX512F__)
constexpr int kRegister = 64;
#elif defined(__AVX__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

template <typename scalar_t>
struct Simd {
  static constexpr int width = kRegister / sizeof(scalar_t);
  typedef scalar_t vec __attribute__((vector_size(kRegister)));
  typedef scalar_t half __attribute__((vector_size(kRegister / 2)));
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
template <typename scalar_t, int bytes = kRegister / 2, typename V>
VIM_INLINE scalar_t sum(V value) {
  if constexpr (bytes > 2 * sizeof(scalar_t)) {
    typedef scalar_t half_t __attribute__((vector_size(bytes / 2)));
    half_t halves[2];
    std::memcpy(halves, &value, bytes);
    return sum<scalar_t, bytes / 2>(halves[0] + halves[1]);
  } else {
    scalar_t total = 0;
    for (size_t i = 0; i < bytes / sizeof(scalar_t); ++i) total += value[i];
    return total;
  }
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

// 2^r for r in [-0.5, 0.5], to about one unit in the last place: the polynomial of least relative error that is 1 at 0,
// so that no decay stays none.
VIM_INLINE Vec<float> exp2_fraction(Vec<float> r) {
  Vec<float> p = splat(1.3264728e-3f);
  p = p * r + 9.6715126e-3f;
  p = p * r + 5.5507337e-2f;
  p = p * r + 2.4022242e-1f;
  p = p * r + 6.9314698e-1f;
  return p * r + 1.0f;
}

// 2^x for x below 128: 2^(x - n) times 2^n, n the nearest whole number.
VIM_INLINE Vec<float> exp2(Vec<float> x) {
#if !defined(__AVX512F__)
  x = max(splat(-126.0f), x);
#endif
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number, which the low bits then hold
  const Vec<float> shifted = x + magic, n = shifted - magic;
  Vec<float> result = exp2_fraction(x - n);
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_scalef_ps((__m512)result, (__m512)n);
#else
  typedef int32_t bits_t __attribute__((vector_size(kRegister)));
  bits_t exponent, bits;
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  std::memcpy(&bits, &result, sizeof(bits));
  bits += exponent << 23;  // n times more in the exponent
  std::memcpy(&result, &bits, sizeof(result));
  return result;
#endif
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
  const Vec<scalar_t> t = exp<scalar_t>(min(-x, x));
  const Vec<scalar_t> reciprocal = scalar_t(1) / (t + scalar_t(1));
  return {max(zero, x) + log1p_unit(t), x > zero ? reciprocal : t * reciprocal};
}

// x sigmoid(x) and its derivative. Below the least x whose exponential is finite the sigmoid is 0, also times a huge x.
template <typename scalar_t>
VIM_INLINE Activation<Vec<scalar_t>> silu(Vec<scalar_t> x) {
  const Vec<scalar_t> zero{};
  const Vec<scalar_t> reciprocal = scalar_t(1) / (exp<scalar_t>(-x) + scalar_t(1));
  const Vec<scalar_t> sigmoid = x < scalar_t(-kMaxExponent * kLn2) ? zero : reciprocal;
  return {x * sigmoid, sigmoid * (x * (scalar_t(1) - sigmoid) + scalar_t(1))};
}

}  // namespace vim
