// Selective scan, forward and backward, on channels-last tensors.
//
// A task is one image and a range of channels, of which a register's worth run side by side. Tokens go by in chunks:
// what depends on the token alone is computed once for a chunk, then a few states at a time pass through it in registers.
// Forward keeps the states between chunks; backward computes those inside a chunk again. A comes in times
// log2(e), so that a power of two gives the decay.

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <memory>
#include <tuple>
#include <vector>

#include "operations.h"
#include "sequence.h"

namespace vim {
namespace {

constexpr int kChunk = 33;  // tokens; 65 and 197, of square grids with a class token, then leave no rest of one or five
constexpr int kStates = 4;  // states in registers at a time

int64_t chunks_of(int64_t length) { return ceil_div(length, kChunk); }

// The states between chunks: [images, chunks - 1, N, channels], since those before the first token are zeros.
std::array<int64_t, 4> states_shape(int64_t images, int64_t length, int64_t N, int64_t channels) {
  return {images, std::max<int64_t>(chunks_of(length) - 1, 0), N, channels};
}

// Where the states before chunk k > 0 are.
template <typename scalar_t>
VIM_INLINE scalar_t* states_before(scalar_t* states, const Tasks& tasks, int64_t N, int64_t image, int64_t k) {
  return states + (image * (chunks_of(tasks.length) - 1) + k - 1) * N * tasks.channels;
}

// The largest step for which all of a channel's decays are finite. Without positive A, which lets states grow, any is.
template <typename scalar_t>
VIM_INLINE Vec<scalar_t> step_limit(const std::vector<Vec<scalar_t>>& A) {
  Vec<scalar_t> growth{};
  for (const auto& a : A) growth = max(a, growth);  // 0 stays where a is -0, whose reciprocal is minus infinity
  return scalar_t(kMaxExponent) / growth;
}

template <typename scalar_t, int S>
VIM_INLINE void scan_chunk(
    int tokens, const Vec<scalar_t>* dt, const Vec<scalar_t>* dtu, const scalar_t* const* B, const scalar_t* const* C,
    const Vec<scalar_t>* A, Vec<scalar_t>* h, Vec<scalar_t>* y, int64_t n) {
  Vec<scalar_t> state[S];
  for (int s = 0; s < S; ++s) state[s] = h[n + s];
  for (int i = 0; i < tokens; ++i) {
    Vec<scalar_t> out = y[i];
    for (int s = 0; s < S; ++s) {
      state[s] = exp2(dt[i] * A[n + s]) * state[s] + dtu[i] * B[i][n + s];
      out += state[s] * C[i][n + s];
    }
    y[i] = out;
  }
  for (int s = 0; s < S; ++s) h[n + s] = state[s];
}

template <typename scalar_t>
void forward(
    const Tasks& tasks, int64_t N, const Sequence<scalar_t>& u, const Sequence<scalar_t>& delta, const scalar_t* A,
    const Sequence<scalar_t>& B, const Sequence<scalar_t>& C, const scalar_t* D, const Sequence<scalar_t>& z,
    const scalar_t* delta_bias, const Sequence<scalar_t>& out, bool add, scalar_t* states) {
  constexpr int width = Simd<scalar_t>::width;
  using V = Vec<scalar_t>;
  const int64_t chunks = chunks_of(tasks.length);
  for_each_task(tasks, [&](int64_t image, int64_t, int64_t first, int64_t last) {
    V dt[kChunk], dtu[kChunk], y[kChunk];
    const scalar_t *Bs[kChunk], *Cs[kChunk];
    std::vector<V> carried((last - first) * N), decay(N);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t start = chunk * kChunk;
      const int tokens = static_cast<int>(std::min<int64_t>(kChunk, tasks.length - start));
      for (int i = 0; i < tokens; ++i) {
        Bs[i] = B.at(image, tasks.token(start + i));
        Cs[i] = C.at(image, tasks.token(start + i));
      }
      for (int64_t block = first; block < last; ++block) {
        const int64_t c = block * width;
        const int count = valid<scalar_t>(tasks, block);
        V* h = carried.data() + (block - first) * N;
        for (int64_t n = 0; n < N; ++n) decay[n] = load(A + n * tasks.channels + c, count) * scalar_t(kLog2E);
        const V skip = load(D + c, count), bias = load(delta_bias + c, count), limit = step_limit<scalar_t>(decay);
        if (states && chunk > 0) {
          scalar_t* to = states_before(states, tasks, N, image, chunk) + c;
          for (int64_t n = 0; n < N; ++n) store(to + n * tasks.channels, h[n], count);
        }
        for (int i = 0; i < tokens; ++i) {
          const int64_t t = tasks.token(start + i);
          const V input = load(u.at(image, t) + c, count);
          dt[i] = min(limit, softplus<scalar_t>(load(delta.at(image, t) + c, count) + bias).value);
          dtu[i] = dt[i] * input;
          y[i] = skip * input;
        }
        int64_t n = 0;
        for (; n + kStates <= N; n += kStates) {
          scan_chunk<scalar_t, kStates>(tokens, dt, dtu, Bs, Cs, decay.data(), h, y, n);
        }
        for (; n < N; ++n) scan_chunk<scalar_t, 1>(tokens, dt, dtu, Bs, Cs, decay.data(), h, y, n);
        for (int i = 0; i < tokens; ++i) {
          const int64_t t = tasks.token(start + i);
          const V gate = silu<scalar_t>(load(z.at(image, t) + c, count)).value;
          scalar_t* to = out.at(image, t) + c;
          store(to, add ? load(to, count) + y[i] * gate : y[i] * gate, count);
        }
      }
    }
  });
}

// What a chunk's backward pass reads and adds to; arrays over tokens, or [state, token] for dB and dC.
template <typename scalar_t>
struct Chunk {
  using V = Vec<scalar_t>;
  V dt[kChunk], dtu[kChunk], input[kChunk], y[kChunk], dy[kChunk], ddt[kChunk], ddtu[kChunk];
  V sigmoid[kChunk], dz[kChunk];
  const scalar_t *B[kChunk], *C[kChunk];
  int tokens;
};

template <typename scalar_t, int S>
VIM_INLINE void scan_chunk_backward(
    Chunk<scalar_t>& chunk, const Vec<scalar_t>* A, const Vec<scalar_t>* start, Vec<scalar_t>* dh, Vec<scalar_t>* dA,
    Half<scalar_t>* dB, Half<scalar_t>* dC, int64_t n) {
  using V = Vec<scalar_t>;
  V h[kChunk + 1][S], decay[kChunk][S];
  V a[S], gradient[S], gradient_A[S];
  for (int s = 0; s < S; ++s) {
    h[0][s] = start[n + s];
    a[s] = A[n + s];
    gradient[s] = dh[n + s];
    gradient_A[s] = V{};
  }
  for (int i = 0; i < chunk.tokens; ++i) {
    V out = chunk.y[i];
    for (int s = 0; s < S; ++s) {
      decay[i][s] = exp2(chunk.dt[i] * a[s]);
      h[i + 1][s] = decay[i][s] * h[i][s] + chunk.dtu[i] * chunk.B[i][n + s];
      out += h[i + 1][s] * chunk.C[i][n + s];
    }
    chunk.y[i] = out;
  }
  for (int i = chunk.tokens - 1; i >= 0; --i) {
    const V dy = chunk.dy[i], dt = chunk.dt[i], dtu = chunk.dtu[i];
    V ddt = chunk.ddt[i], ddtu = chunk.ddtu[i];
    for (int s = 0; s < S; ++s) {
      gradient[s] += dy * chunk.C[i][n + s];
      dC[(n + s) * kChunk + i] += fold<scalar_t>(dy * h[i + 1][s]);
      dB[(n + s) * kChunk + i] += fold<scalar_t>(gradient[s] * dtu);
      ddtu += gradient[s] * chunk.B[i][n + s];
      gradient[s] *= decay[i][s];
      const V exponent = gradient[s] * h[i][s];  // gradient of dt * A
      ddt += exponent * a[s];
      gradient_A[s] += exponent * dt;
    }
    chunk.ddt[i] = ddt;
    chunk.ddtu[i] = ddtu;
  }
  for (int s = 0; s < S; ++s) {
    dh[n + s] = gradient[s];
    dA[n + s] += gradient_A[s];
  }
}

template <typename scalar_t>
struct Gradients {
  Sequence<scalar_t> u, delta, z;
  bool add_z;
  Sequence<scalar_t> B, C;   // of the groups' images one after the other
  scalar_t* A;               // [threads, blocks, N, width]
  scalar_t *D, *delta_bias;  // [threads, blocks, width]
};

template <typename scalar_t>
void backward(
    const Tasks& tasks, int64_t N, const Sequence<scalar_t>& grad, const Sequence<scalar_t>& u,
    const Sequence<scalar_t>& delta, const scalar_t* A, const Sequence<scalar_t>& B, const Sequence<scalar_t>& C,
    const scalar_t* D, const Sequence<scalar_t>& z, const scalar_t* delta_bias, const scalar_t* states,
    const Gradients<scalar_t>& to) {
  constexpr int width = Simd<scalar_t>::width;
  using V = Vec<scalar_t>;
  const int64_t chunks = chunks_of(tasks.length);
  for_each_task(tasks, [&](int64_t image, int64_t group, int64_t first, int64_t last) {
    const int64_t thread = at::get_thread_num() * tasks.blocks;
    Chunk<scalar_t> chunk;
    const std::unique_ptr<Half<scalar_t>[]> dB(new Half<scalar_t>[kChunk * N]), dC(new Half<scalar_t>[kChunk * N]);
    std::vector<V> dh((last - first) * N), decay(N), start(N), dA(N);
    for (int64_t k = chunks - 1; k >= 0; --k) {
      const int64_t begin = k * kChunk;
      chunk.tokens = static_cast<int>(std::min<int64_t>(kChunk, tasks.length - begin));
      std::fill_n(dB.get(), kChunk * N, Half<scalar_t>{});
      std::fill_n(dC.get(), kChunk * N, Half<scalar_t>{});
      for (int i = 0; i < chunk.tokens; ++i) {
        chunk.B[i] = B.at(image, tasks.token(begin + i));
        chunk.C[i] = C.at(image, tasks.token(begin + i));
      }
      for (int64_t block = first; block < last; ++block) {
        const int64_t c = block * width;
        const int count = valid<scalar_t>(tasks, block);
        const V skip = load(D + c, count), bias = load(delta_bias + c, count);
        const scalar_t* saved = k > 0 ? states_before(states, tasks, N, image, k) + c : nullptr;
        scalar_t* sum_A = to.A + (thread + block) * N * width;
        for (int64_t n = 0; n < N; ++n) {
          decay[n] = load(A + n * tasks.channels + c, count) * scalar_t(kLog2E);
          start[n] = saved ? load(saved + n * tasks.channels, count) : V{};
          dA[n] = load(sum_A + n * width);
        }
        const V limit = step_limit<scalar_t>(decay);
        for (int i = 0; i < chunk.tokens; ++i) {
          const int64_t t = tasks.token(begin + i);
          const auto step = softplus<scalar_t>(load(delta.at(image, t) + c, count) + bias);
          const auto gate = silu<scalar_t>(load(z.at(image, t) + c, count));
          const V upstream = load(grad.at(image, t) + c, count);
          chunk.input[i] = load(u.at(image, t) + c, count);
          chunk.dt[i] = min(limit, step.value);
          chunk.sigmoid[i] = step.slope;
          chunk.dtu[i] = chunk.dt[i] * chunk.input[i];
          chunk.y[i] = skip * chunk.input[i];
          chunk.dy[i] = upstream * gate.value;
          chunk.dz[i] = upstream * gate.slope;
          chunk.ddt[i] = chunk.ddtu[i] = V{};
        }
        V* carried = dh.data() + (block - first) * N;
        int64_t n = 0;
        for (; n + kStates <= N; n += kStates) {
          scan_chunk_backward<scalar_t, kStates>(
              chunk, decay.data(), start.data(), carried, dA.data(), dB.get(), dC.get(), n);
        }
        for (; n < N; ++n) {
          scan_chunk_backward<scalar_t, 1>(
              chunk, decay.data(), start.data(), carried, dA.data(), dB.get(), dC.get(), n);
        }
        for (n = 0; n < N; ++n) store(sum_A + n * width, dA[n]);
        scalar_t *sum_D = to.D + (thread + block) * width, *sum_bias = to.delta_bias + (thread + block) * width;
        V dD = load(sum_D), dbias = load(sum_bias);
        for (int i = 0; i < chunk.tokens; ++i) {
          const int64_t t = tasks.token(begin + i);
          const V ddt = chunk.ddt[i] * scalar_t(kLn2) + chunk.ddtu[i] * chunk.input[i];
          const V ddelta = ddt * chunk.sigmoid[i];
          store(to.u.at(image, t) + c, chunk.ddtu[i] * chunk.dt[i] + chunk.dy[i] * skip, count);
          store(to.delta.at(image, t) + c, ddelta, count);
          scalar_t* to_z = to.z.at(image, t) + c;
          const V dz = chunk.dz[i] * chunk.y[i];
          store(to_z, to.add_z ? load(to_z, count) + dz : dz, count);
          dD += chunk.dy[i] * chunk.input[i];
          dbias += ddelta;
        }
        store(sum_D, dD);
        store(sum_bias, dbias);
      }
      for (int i = 0; i < chunk.tokens; ++i) {
        scalar_t* to_B = to.B.at(group * tasks.images + image, tasks.token(begin + i));
        scalar_t* to_C = to.C.at(group * tasks.images + image, tasks.token(begin + i));
        for (int64_t n = 0; n < N; ++n) {
          to_B[n] = sum<scalar_t>(dB[n * kChunk + i]);
          to_C[n] = sum<scalar_t>(dC[n * kChunk + i]);
        }
      }
    }
  });
}

void check_inputs(
    const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A, const at::Tensor& B, const at::Tensor& C,
    const at::Tensor& D, const at::Tensor& z, const at::Tensor& delta_bias) {
  check_sequence("u", u);
  TORCH_CHECK(A.dim() == 2, "A must be [channels, states], not of shape ", A.sizes());
  const int64_t channels = u.size(2), N = A.size(1);
  check("delta", delta, u.sizes(), u);
  check("A", A, {channels, N}, u);
  check("B", B, {u.size(0), u.size(1), N}, u);
  check("C", C, {u.size(0), u.size(1), N}, u);
  check("D", D, {channels}, u);
  check("z", z, u.sizes(), u);
  check("delta_bias", delta_bias, {channels}, u);
}

}  // namespace

at::Tensor selective_scan_into(
    const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A, const at::Tensor& B, const at::Tensor& C,
    const at::Tensor& D, const at::Tensor& z, const at::Tensor& delta_bias, bool reverse, bool keep_states,
    at::Tensor& out, bool add) {
  check_inputs(u, delta, A, B, C, D, z, delta_bias);
  check_buffer("out", out, u.sizes(), u);
  const int64_t N = A.size(1);
  const auto u_ = rows(u), delta_ = rows(delta), B_ = rows(B), C_ = rows(C), z_ = rows(z);
  const auto A_ = A.t().contiguous(), D_ = D.contiguous(), bias_ = delta_bias.contiguous();
  at::Tensor states;
  VIM_DISPATCH(u.scalar_type(), {
    const Tasks tasks(u, Simd<scalar_t>::width, reverse);
    states = at::empty(states_shape(keep_states ? tasks.images : 0, tasks.length, N, tasks.channels), u.options());
    forward<scalar_t>(
        tasks, N, Sequence<scalar_t>(u_), Sequence<scalar_t>(delta_), A_.data_ptr<scalar_t>(), Sequence<scalar_t>(B_),
        Sequence<scalar_t>(C_), D_.data_ptr<scalar_t>(), Sequence<scalar_t>(z_), bias_.data_ptr<scalar_t>(),
        Sequence<scalar_t>(out), add, keep_states ? states.data_ptr<scalar_t>() : nullptr);
  });
  return states;
}

std::tuple<at::Tensor, at::Tensor> selective_scan(
    const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A, const at::Tensor& B, const at::Tensor& C,
    const at::Tensor& D, const at::Tensor& z, const at::Tensor& delta_bias, bool reverse, bool keep_states) {
  auto out = at::empty(u.sizes(), u.options());
  auto states = selective_scan_into(u, delta, A, B, C, D, z, delta_bias, reverse, keep_states, out, /*add=*/false);
  return {out, states};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> selective_scan_backward_into(
    const at::Tensor& grad, const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A, const at::Tensor& B,
    const at::Tensor& C, const at::Tensor& D, const at::Tensor& z, const at::Tensor& delta_bias,
    const at::Tensor& states, bool reverse, at::Tensor& dB, at::Tensor& dC, at::Tensor& dz, bool add) {
  check_inputs(u, delta, A, B, C, D, z, delta_bias);
  check("grad", grad, u.sizes(), u);
  check("states", states, states_shape(u.size(0), u.size(1), A.size(1), u.size(2)), u);
  check_buffer("dB", dB, B.sizes(), u), check_buffer("dC", dC, C.sizes(), u), check_buffer("dz", dz, z.sizes(), u);
  const int64_t N = A.size(1), threads = at::get_num_threads();
  const auto grad_ = rows(grad), u_ = rows(u), delta_ = rows(delta), B_ = rows(B), C_ = rows(C), z_ = rows(z);
  const auto A_ = A.t().contiguous(), D_ = D.contiguous(), bias_ = delta_bias.contiguous();
  auto du = at::empty(u.sizes(), u.options()), ddelta = at::empty(u.sizes(), u.options());
  at::Tensor dA, dD, dbias;
  VIM_DISPATCH(u.scalar_type(), {
    constexpr int width = Simd<scalar_t>::width;
    const Tasks tasks(u, width, reverse);
    // Where groups of channels share an image, each has its own sums until all are added up.
    const bool direct = tasks.groups == 1;
    const std::array<int64_t, 3> parts{tasks.groups * tasks.images, tasks.length, N};
    const auto B_parts = direct ? dB : at::empty(parts, u.options());
    const auto C_parts = direct ? dC : at::empty(parts, u.options());
    const auto A_parts = at::zeros({threads, tasks.blocks, N, width}, u.options());
    const auto D_parts = at::zeros({threads, tasks.blocks, width}, u.options());
    const auto bias_parts = at::zeros({threads, tasks.blocks, width}, u.options());
    backward<scalar_t>(
        tasks, N, Sequence<scalar_t>(grad_), Sequence<scalar_t>(u_), Sequence<scalar_t>(delta_),
        A_.data_ptr<scalar_t>(), Sequence<scalar_t>(B_), Sequence<scalar_t>(C_), D_.data_ptr<scalar_t>(),
        Sequence<scalar_t>(z_), bias_.data_ptr<scalar_t>(), states.data_ptr<scalar_t>(),
        Gradients<scalar_t>{
            Sequence<scalar_t>(du), Sequence<scalar_t>(ddelta), Sequence<scalar_t>(dz), add,
            Sequence<scalar_t>(B_parts), Sequence<scalar_t>(C_parts),
            A_parts.data_ptr<scalar_t>(), D_parts.data_ptr<scalar_t>(), bias_parts.data_ptr<scalar_t>()});
    if (!direct) {
      dB.copy_(B_parts.unflatten(0, {tasks.groups, tasks.images}).sum(0));
      dC.copy_(C_parts.unflatten(0, {tasks.groups, tasks.images}).sum(0));
    }
    dA = sum_over_threads<scalar_t>(A_parts, tasks.channels, 0, N);
    dD = sum_over_threads<scalar_t>(D_parts, tasks.channels, 0, 1).view({tasks.channels});
    dbias = sum_over_threads<scalar_t>(bias_parts, tasks.channels, 0, 1).view({tasks.channels});
  });
  return {du, ddelta, dA, dD, dbias};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
selective_scan_backward(
    const at::Tensor& grad, const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A, const at::Tensor& B,
    const at::Tensor& C, const at::Tensor& D, const at::Tensor& z, const at::Tensor& delta_bias,
    const at::Tensor& states, bool reverse) {
  auto dB = at::empty(B.sizes(), u.options()), dC = at::empty(C.sizes(), u.options());
  auto dz = at::empty(z.sizes(), u.options());
  const auto [du, ddelta, dA, dD, dbias] = selective_scan_backward_into(
      grad, u, delta, A, B, C, D, z, delta_bias, states, reverse, dB, dC, dz, /*add=*/false);
  return {du, ddelta, dA, dB, dC, dD, dz, dbias};
}

// The inputs of the scan, in every schema.
#define VIM_INPUTS "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor z, Tensor delta_bias, "

TORCH_LIBRARY_FRAGMENT(vim, m) {
  m.def("selective_scan(" VIM_INPUTS "bool reverse, bool keep_states) -> (Tensor, Tensor)");
  m.def("selective_scan_into(" VIM_INPUTS "bool reverse, bool keep_states, Tensor(a!) out, bool add) -> Tensor");
  m.def(
      "selective_scan_backward(Tensor grad, " VIM_INPUTS "Tensor states, bool reverse) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "selective_scan_backward_into(Tensor grad, " VIM_INPUTS "Tensor states, bool reverse, "
      "Tensor(a!) dB, Tensor(b!) dC, Tensor(c!) dz, bool add) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(vim, CPU, m) {
  m.impl("selective_scan", &selective_scan);
  m.impl("selective_scan_into", &selective_scan_into);
  m.impl("selective_scan_backward", &selective_scan_backward);
  m.impl("selective_scan_backward_into", &selective_scan_backward_into);
}

}  // namespace vim
