// The forward pass of the GPT for the processor: one call computes the hidden states of a ragged batch of tokens.
//
// Generating reads every weight once per token, so the matrices are laid out to be read in one straight line:
// panels of 32 output columns; in a panel, for each pair of inputs, 2 × 16 outputs × 2 inputs (float32: for each
// input, 2 × 16 outputs). 16 outputs are the lanes of one vector. Inputs are float32, bfloat16, or, for int8 weights,
// 16-bit integers with one scale per row: sums of products of integers are exact.
//
// Vectors are the compiler's own (GCC, Clang), so the file compiles for any processor; where there are instructions for
// bfloat16 and integer products they are named. Called by model/native.py, which compiles it. All matrices row-major.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "team.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

using team::Crew;
using team::Team;

typedef float f32 __attribute__((vector_size(64)));          // 16 lanes of each
typedef int32_t i32 __attribute__((vector_size(64)));
typedef uint32_t u32 __attribute__((vector_size(64)));
typedef int16_t i16 __attribute__((vector_size(32)));
typedef uint16_t u16 __attribute__((vector_size(32)));
constexpr int LANES = 16, PANEL = 32;
constexpr int EXACT = 512;  // inputs whose products fit into 32 bits: 512 · 127 · 32767 < 2³¹

struct Matrix { const void* weight; const float* scale; const float* bias; int64_t outputs, inputs; };  // bias may be null
struct Norm { const float* gain; const float* bias; };
struct Layer { Norm attention_norm, mlp_norm; Matrix qkv, o, up, down; const float* qk_gain; };  // (H + G, d) or null
enum Precision { FP32, BF16, INT8 };
enum Activation { SWIGLU, RELU2, GELU };
enum NormKind { RMS, LAYER };

struct Model {
    int32_t layers, width, heads, kv_heads, head_dim, mlp_width, precision, activation, norm_kind;
    float eps;
    const Layer* layer;
    Norm norm;
    Matrix head;
    const void* embedding;  // (V, D), float32 or bfloat16 as the cache
    const void* places;     // the same for learned positions, or null
};

struct Batch {
    int32_t count, threads;
    const int32_t *tokens, *rows, *positions;  // (count,), the tokens of a row in order and side by side
    void *const *keys, *const *values;  // per layer (rows, G, S, d); keys of 16 positions are stored as (d, 16)
    int64_t row_stride, head_stride;
    const float *cos, *sin;  // (S, d/2), null for learned positions
};

template <class T> T load(const void* p) { T v; memcpy(&v, p, sizeof v); return v; }
template <class T> void store(void* p, T v) { memcpy(p, &v, sizeof v); }

f32 widen(const float* p) { return load<f32>(p); }
f32 widen(const uint16_t* p) { return (f32)(__builtin_convertvector(load<u16>(p), u32) << 16); }
float single(float v) { return v; }
float single(uint16_t v) { uint32_t u = uint32_t(v) << 16; return load<float>(&u); }
void narrow(float* p, float v) { *p = v; }
void narrow(uint16_t* p, float v) {  // to the nearest, ties to even
    uint32_t u = load<uint32_t>(&v);
    *p = uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

float sum(f32 v) { float s = 0; for (int i = 0; i < LANES; i++) s += v[i]; return s; }
float largest(f32 v) { float s = v[0]; for (int i = 1; i < LANES; i++) s = s > v[i] ? s : v[i]; return s; }
f32 splat(float x) { return f32{} + x; }
f32 bigger(f32 a, f32 b) { return a > b ? a : b; }
f32 smaller(f32 a, f32 b) { return a < b ? a : b; }

f32 exponential(f32 x) {  // e^x = 2^n · e^r, |r| ≤ ln2 / 2; relative error below 3e-7
    x = smaller(bigger(x, splat(-87.f)), splat(88.f));
    const f32 shift = splat(12582912.f);  // 1.5 · 2²³: the sum's last bits are the rounded number
    f32 n = x * 1.44269504f + shift - shift;
    f32 r = x - n * 0.693359375f + n * 2.12194440e-4f;
    f32 p = splat(1.f / 5040);
    for (float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f}) p = p * r + c;
    return p * (f32)((__builtin_convertvector(n, i32) + 127) << 23);
}
f32 logistic(f32 x) { return 1.f / (1.f + exponential(-x)); }
f32 gelu(f32 x) { return x * logistic(1.59576912f * (x + 0.044715f * x * x * x)); }  // tanh form: tanh(u) = 2σ(2u) − 1

// A precision: how inputs are prepared, and a product of R rows with one panel.

struct Float {
    using Input = float;
    using Cached = float;
    using Sum = f32;
    static constexpr int STEP = 1;  // inputs per vector of weights
    static constexpr int64_t weights(int64_t inputs) { return inputs * PANEL * 4; }  // bytes of a panel
    static float prepare(const float* x, Input* to, int64_t n) { memcpy(to, x, n * 4); return 1; }
    static void add(Sum& a, const Input* x, const char* w) { a += *x * load<f32>(w); }
    static constexpr int BYTES = 64;
};

struct Brain {
    using Input = uint16_t;
    using Cached = uint16_t;
    using Sum = f32;
    static constexpr int STEP = 2;
    static constexpr int64_t weights(int64_t inputs) { return inputs * PANEL * 2; }
    static float prepare(const float* x, Input* to, int64_t n) {
        int64_t i = 0;
        for (; i + LANES <= n; i += LANES) {
            u32 u = (u32)load<f32>(x + i);
            store(to + i, __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, u16));
        }
        for (; i < n; i++) narrow(to + i, x[i]);
        return 1;
    }
    static void add(Sum& a, const Input* x, const char* w) {
#ifdef __AVX512BF16__
        a = (f32)_mm512_dpbf16_ps((__m512)a, (__m512bh)_mm512_set1_epi32(load<int32_t>(x)), (__m512bh)load<__m512i>(w));
#else
        u32 pair = load<u32>(w);
        a += single(x[0]) * (f32)(pair << 16) + single(x[1]) * (f32)(pair & 0xffff0000u);
#endif
    }
    static constexpr int BYTES = 64;
};

struct Byte {
    using Input = int16_t;
    using Cached = uint16_t;
    using Sum = i32;
    static constexpr int STEP = 2;
    static constexpr int64_t weights(int64_t inputs) { return inputs * PANEL; }
    static float prepare(const float* x, Input* to, int64_t n) {
        float top = 0;
        for (int64_t i = 0; i < n; i++) top = std::fabs(x[i]) > top ? std::fabs(x[i]) : top;
        float scale = top > 0 ? 32767 / top : 0;
        for (int64_t i = 0; i < n; i++) to[i] = int16_t(std::lrintf(x[i] * scale));
        return top / 32767;
    }
    static void add(Sum& a, const Input* x, const char* w) {
#ifdef __AVX512VNNI__
        __m512i wide = _mm512_cvtepi8_epi16(load<__m256i>(w));
        a = (i32)_mm512_dpwssd_epi32((__m512i)a, wide, _mm512_set1_epi32(load<int32_t>(x)));
#else
        i16 pair = load<i16>(w);  // two bytes a lane
        a += int32_t(x[0]) * __builtin_convertvector((i16)((u16)pair << 8) >> 8, i32);
        a += int32_t(x[1]) * __builtin_convertvector(pair >> 8, i32);
#endif
    }
    static constexpr int BYTES = 32;
};

// R rows of x times one panel: out[r][0..1], before scales and bias.
template <class P, int R>
void tile(const typename P::Input* x, int64_t inputs, const char* w, f32 (&out)[R][2]) {
    constexpr bool whole = sizeof(typename P::Input) == 2 && P::BYTES == 32;  // integers
    const int64_t part = whole ? EXACT : inputs;
    for (int r = 0; r < R; r++) out[r][0] = out[r][1] = f32{};
    for (int64_t at = 0; at < inputs; at += part) {
        const int64_t end = at + part < inputs ? at + part : inputs;
        typename P::Sum sums[R][2] = {};
        for (int64_t k = at; k < end; k += P::STEP, w += 2 * P::BYTES)
            for (int r = 0; r < R; r++)
                for (int c = 0; c < 2; c++) P::add(sums[r][c], x + r * inputs + k, w + c * P::BYTES);
        for (int r = 0; r < R; r++)
            for (int c = 0; c < 2; c++) {
                if constexpr (whole) out[r][c] += __builtin_convertvector(sums[r][c], f32);
                else out[r][c] = sums[r][c];
            }
    }
}

enum Then { STORE, ADD, ACTIVATE };  // what becomes of a product: y = p, y += p, y = activation(p)

template <class P, int R>
void rows(const Matrix& m, const typename P::Input* x, const float* scales, int64_t panel, Then then, int activation,
          float* y, int64_t width) {
    f32 out[R][2];
    tile<P, R>(x, m.inputs, (const char*)m.weight + panel * P::weights(m.inputs), out);
    const int64_t at = panel * PANEL;
    for (int r = 0; r < R; r++) {
        float* line = y + r * width;
        f32 value[2];
        for (int c = 0; c < 2; c++) {
            value[c] = out[r][c];
            if (m.scale) value[c] *= scales[r] * load<f32>(m.scale + at + c * LANES);
            if (m.bias) value[c] += load<f32>(m.bias + at + c * LANES);
        }
        if (then == ACTIVATE && activation == SWIGLU) {  // 16 gates, then their 16 values
            store(line + at / 2, value[0] * logistic(value[0]) * value[1]);
            continue;
        }
        for (int c = 0; c < 2; c++) {
            float* to = line + at + c * LANES;
            if (then == ADD) value[c] += load<f32>(to);
            if (then == ACTIVATE)
                value[c] = activation == GELU ? gelu(value[c]) : bigger(value[c], f32{}) * bigger(value[c], f32{});
            store(to, value[c]);
        }
    }
}

// y (count, width) = or += x (count, inputs) times the matrix; the threads share the panels. `width` is a multiple of 32.
template <class P>
void multiply(Crew& crew, const Matrix& m, const typename P::Input* x, const float* scales, int count, float* y, int64_t width,
              Then then = STORE, int activation = SWIGLU) {
    crew.share(m.outputs / PANEL, [&](int64_t panel) {
        for (int r = 0; r < count;) {
            const auto* in = x + r * m.inputs;
            float* to = y + r * width;
#define ROWS(R) { rows<P, R>(m, in, scales + r, panel, then, activation, to, width); r += R; }
            if (count - r >= 8) ROWS(8)
            else if (count - r >= 4) ROWS(4)
            else if (count - r >= 2) ROWS(2)
            else ROWS(1)
#undef ROWS
        }
    });
}

void normalise(const float* x, int n, const Norm& norm, int kind, float eps, float* to) {
    double total = 0, squares = 0;
    for (int i = 0; i < n; i++) total += x[i], squares += double(x[i]) * x[i];
    const double mean = kind == LAYER ? total / n : 0;
    const float shift = float(mean), scale = float(1 / std::sqrt(squares / n - mean * mean + eps));
    for (int i = 0; i < n; i++) to[i] = (x[i] - shift) * scale * norm.gain[i] + (norm.bias ? norm.bias[i] : 0);
}

// Attention. A unit is one row's neighbouring tokens and one head of keys: its queries read the same keys together.

struct Unit { int first, count; };

// scores (N, 16·B) of N queries with B blocks of 16 positions. A sum waits for its last addition, so about eight are
// made side by side; each is still added in the order of i, whatever N and B.
template <class T, int N, int B> void score(const float* const* q, const T* keys, int d, float* const* scores) {
    f32 sums[N][B] = {};
    for (int i = 0; i < d; i++)
        for (int k = 0; k < B; k++) {
            const f32 key = widen(keys + (int64_t(k) * d + i) * LANES);
            for (int j = 0; j < N; j++) sums[j][k] += q[j][i] * key;
        }
    for (int j = 0; j < N; j++)
        for (int k = 0; k < B; k++) store(scores[j] + k * LANES, sums[j][k]);
}

// out (N, 16·C) = p (N, S) · values (S, d)
template <class T, int N, int C>
void gather(const float* const* p, const T* values, int d, int end, float* const* out) {
    f32 sums[N][C] = {};
    for (int s = 0; s < end; s++, values += d)
        for (int c = 0; c < C; c++) {
            const f32 v = widen(values + c * LANES);
            for (int j = 0; j < N; j++) sums[j][c] += p[j][s] * v;
        }
    for (int j = 0; j < N; j++)
        for (int c = 0; c < C; c++) store(out[j] + c * LANES, sums[j][c]);
}

template <class T, int N>
void attend(const float* const* q, const int* ends, const T* keys, const T* values, int d, float* buffer, int64_t room,
            float* const* out) {
    int end = 0;
    for (int j = 0; j < N; j++) end = ends[j] > end ? ends[j] : end;
    float* p[N];
    constexpr int MANY = 8 / N;
    for (int s = 0; s < end;) {
        for (int j = 0; j < N; j++) p[j] = buffer + j * room + s;
        const bool many = s + (MANY - 1) * LANES < end;
        if (many) score<T, N, MANY>(q, keys + int64_t(s) * d, d, p);
        else score<T, N, 1>(q, keys + int64_t(s) * d, d, p);
        s += many ? MANY * LANES : LANES;
    }
    for (int j = 0; j < N; j++) {
        p[j] = buffer + j * room;
        for (int s = ends[j]; s < (end + LANES - 1) / LANES * LANES; s++) p[j][s] = -INFINITY;
        f32 top = splat(-INFINITY), total = {};
        for (int s = 0; s < end; s += LANES) top = bigger(top, load<f32>(p[j] + s));
        const float most = largest(top);
        for (int s = 0; s < end; s += LANES) {
            const f32 x = load<f32>(p[j] + s);
            const f32 e = x > splat(-1e30f) ? exponential(x - most) : f32{};
            total += e;
            store(p[j] + s, e);
        }
        const float share = 1 / sum(total);
        for (int s = 0; s < end; s += LANES) store(p[j] + s, load<f32>(p[j] + s) * share);
    }
    float* to[N];
    int i = 0;
    constexpr int WIDE = N == 1 ? 8 : 4;
    for (; i + WIDE * LANES <= d; i += WIDE * LANES) {
        for (int j = 0; j < N; j++) to[j] = out[j] + i;
        gather<T, N, WIDE>(p, values + i, d, end, to);
    }
    for (; i < d; i += LANES) {
        for (int j = 0; j < N; j++) to[j] = out[j] + i;
        gather<T, N, 1>(p, values + i, d, end, to);
    }
}

template <class T>
void attend_unit(const Model& m, const Batch& b, int layer, Unit unit, int g, const float* qkv, int64_t wide,
                 float* buffer, int64_t room, float* out, int64_t width) {
    const int shared = m.heads / m.kv_heads, queries = unit.count * shared, d = m.head_dim;
    const int64_t place = b.rows[unit.first] * b.row_stride + g * b.head_stride;
    const T *keys = (const T*)b.keys[layer] + place, *values = (const T*)b.values[layer] + place;
    for (int n = 0; n < queries; n += 4) {
        const float* q[4];
        float* to[4];
        int ends[4];
        const int take = queries - n < 4 ? queries - n : 4;
        for (int j = 0; j < take; j++) {
            const int token = unit.first + (n + j) / shared, head = g * shared + (n + j) % shared;
            q[j] = qkv + token * wide + head * d;
            to[j] = out + token * width + head * d;
            ends[j] = b.positions[token] + 1;
        }
        if (take == 4) attend<T, 4>(q, ends, keys, values, d, buffer, room, to);
        if (take == 3) attend<T, 3>(q, ends, keys, values, d, buffer, room, to);
        if (take == 2) attend<T, 2>(q, ends, keys, values, d, buffer, room, to);
        if (take == 1) attend<T, 1>(q, ends, keys, values, d, buffer, room, to);
    }
}

// One head of one token: norm and rotation of a query or key, and the keys' and values' way into the cache.
template <class T>
void place_head(const Model& m, const Batch& b, int layer, int token, int head, float* x) {
    const int H = m.heads, G = m.kv_heads, d = m.head_dim, position = b.positions[token];
    if (head < H + G) {
        if (m.layer[layer].qk_gain) {
            const Norm norm{m.layer[layer].qk_gain + head * d, nullptr};
            normalise(x, d, norm, RMS, m.eps, x);
        }
        if (b.cos) {
            const float *cos = b.cos + int64_t(position) * (d / 2), *sin = b.sin + int64_t(position) * (d / 2);
            for (int i = 0; i < d / 2; i++) {
                const float low = x[i], high = x[i + d / 2];
                x[i] = low * cos[i] - high * sin[i];
                x[i + d / 2] = high * cos[i] + low * sin[i];
            }
        }
    }
    if (head < H) {
        const float scale = 1 / std::sqrt(float(d));
        for (int i = 0; i < d; i++) x[i] *= scale;
        return;
    }
    const bool key = head < H + G;
    const int g = key ? head - H : head - H - G;
    T* side = (T*)(key ? b.keys : b.values)[layer] + b.rows[token] * b.row_stride + g * b.head_stride;
    if (key) {
        T* block = side + int64_t(position / LANES) * LANES * d + position % LANES;
        for (int i = 0; i < d; i++) narrow(block + i * LANES, x[i]);
    } else {
        for (int i = 0; i < d; i++) narrow(side + int64_t(position) * d + i, x[i]);
    }
}

template <class P> void forward(const Model& m, const Batch& b, float* hidden) {
    using Input = typename P::Input;
    using T = typename P::Cached;
    const int M = b.count, D = m.width, H = m.heads, G = m.kv_heads, d = m.head_dim, heads = H + 2 * G;
    const auto up = [](int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; };
    const int64_t wide = up(heads * d), middle = up(H * d), mlp = up(m.mlp_width), line = up(D);
    int longest = 0;
    for (int i = 0; i < M; i++) longest = b.positions[i] + 1 > longest ? b.positions[i] + 1 : longest;
    const int64_t room = (longest + LANES - 1) / LANES * LANES;
    std::vector<Unit> units;
    for (int i = 0, most = 16 * G / H > 1 ? 16 * G / H : 1; i < M; i++) {
        if (!units.empty() && b.rows[i] == b.rows[i - 1] && units.back().count < most) units.back().count++;
        else units.push_back({i, 1});
    }
    std::vector<float> x(M * line), qkv(M * wide), attended(M * middle), inner(M * mlp), scales(M), scratch(M * line);
    std::vector<Input> input(M * (middle > mlp ? (middle > line ? middle : line) : (mlp > line ? mlp : line)) + 2);

    Team::get().run(b.threads, [&](Crew& crew) {
        std::vector<float> buffer(4 * room);
        crew.share(M, [&](int64_t i) {
            for (int j = 0; j < D; j++) {
                const int64_t at = int64_t(b.tokens[i]) * D + j, place = int64_t(b.positions[i]) * D + j;
                x[i * line + j] = single(((const T*)m.embedding)[at]);
                if (m.places) x[i * line + j] += single(((const T*)m.places)[place]);
            }
        });
        const auto normed = [&](const Norm& norm) {  // norm of x, prepared for a product
            crew.share(M, [&](int64_t i) {
                normalise(&x[i * line], D, norm, m.norm_kind, m.eps, &scratch[i * line]);
                scales[i] = P::prepare(&scratch[i * line], &input[i * D], D);
            });
        };
        const auto ready = [&](const std::vector<float>& from, int64_t stride, int n) {
            crew.share(M, [&](int64_t i) { scales[i] = P::prepare(&from[i * stride], &input[i * n], n); });
        };
        for (int n = 0; n < m.layers; n++) {
            const Layer& layer = m.layer[n];
            normed(layer.attention_norm);
            multiply<P>(crew, layer.qkv, input.data(), scales.data(), M, qkv.data(), wide);
            crew.share(int64_t(M) * heads, [&](int64_t k) {
                const int i = int(k / heads), h = int(k % heads);
                place_head<T>(m, b, n, i, h, &qkv[i * wide + h * d]);
            });
            crew.deal(int64_t(units.size()) * G, [&](int64_t k) {
                attend_unit<T>(m, b, n, units[k / G], int(k % G), qkv.data(), wide, buffer.data(), room, attended.data(),
                               middle);
            });
            ready(attended, middle, H * d);
            multiply<P>(crew, layer.o, input.data(), scales.data(), M, x.data(), line, ADD);
            normed(layer.mlp_norm);
            multiply<P>(crew, layer.up, input.data(), scales.data(), M, inner.data(), mlp, ACTIVATE, m.activation);
            ready(inner, mlp, m.mlp_width);
            multiply<P>(crew, layer.down, input.data(), scales.data(), M, x.data(), line, ADD);
        }
        crew.share(M, [&](int64_t i) { normalise(&x[i * line], D, m.norm, m.norm_kind, m.eps, hidden + i * D); });
    });
}

template <class P> void head(const Model& m, const float* hidden, int M, int threads, float* logits) {
    std::vector<float> scales(M);
    std::vector<typename P::Input> input(int64_t(M) * m.width + 2);
    Team::get().run(threads, [&](Crew& crew) {
        crew.share(M, [&](int64_t i) { scales[i] = P::prepare(hidden + i * m.width, &input[i * m.width], m.width); });
        multiply<P>(crew, m.head, input.data(), scales.data(), M, logits, m.head.outputs);
    });
}

}  // namespace

extern "C" {

// hidden (count, D): after the last norm
void jielong_forward(const Model* m, const Batch* b, float* hidden) {
    if (m->precision == FP32) forward<Float>(*m, *b, hidden);
    if (m->precision == BF16) forward<Brain>(*m, *b, hidden);
    if (m->precision == INT8) forward<Byte>(*m, *b, hidden);
}

// logits (count, V rounded up to 32) of hidden (count, D)
void jielong_logits(const Model* m, const float* hidden, int count, int threads, float* logits) {
    if (m->precision == FP32) head<Float>(*m, hidden, count, threads, logits);
    if (m->precision == BF16) head<Brain>(*m, hidden, count, threads, logits);
    if (m->precision == INT8) head<Byte>(*m, hidden, count, threads, logits);
}

// best (count,): the likeliest token; total (count,): log Σ exp of the logits (count, stride), of which V count
void jielong_greedy(const float* logits, int count, int64_t vocabulary, int64_t stride, int threads, int64_t* best,
                    float* total) {
    const auto one = [=](int64_t i) {
        const float* x = logits + i * stride;
        const int64_t whole = vocabulary / LANES * LANES;
        f32 top = splat(-INFINITY), sums = {};
        for (int64_t v = 0; v < whole; v += LANES) top = bigger(top, load<f32>(x + v));
        float most = largest(top), rest = 0;
        for (int64_t v = whole; v < vocabulary; v++) most = x[v] > most ? x[v] : most;
        for (int64_t v = 0; v < whole; v += LANES) sums += exponential(load<f32>(x + v) - most);
        for (int64_t v = whole; v < vocabulary; v++) rest += std::exp(x[v] - most);
        best[i] = 0;
        while (best[i] + 1 < vocabulary && x[best[i]] != most) best[i]++;
        total[i] = most + std::log(sum(sums) + rest);
    };
    Team::get().run(threads, [&](Crew& crew) { crew.share(count, one); });
}
}
