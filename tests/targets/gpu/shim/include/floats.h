// Floats of 2 bytes.
#pragma once
#include <stdint.h>
#include <string.h>

namespace shim {

template <class To, class From>
inline To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "types of one size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// A float of 2 bytes: what is computed with it is computed in f32 and rounded, each operation by itself. For + - * / and
// sqrt that is the correctly rounded result.
template <class Format>
struct Small {
  uint16_t word;
  Small() = default;
  Small(float value) : word(Format::from(value)) {}
  Small(double value) : word(Format::from(value)) {}
  Small(int value) : word(Format::from(double(value))) {}
  Small(unsigned value) : word(Format::from(double(value))) {}
  Small(long value) : word(Format::from(float(value))) {}
  Small(bool value) : word(Format::from(float(value))) {}
  operator float() const { return Format::to(word); }
  Small operator-() const { return bits<Small>(uint16_t(word ^ 0x8000)); }
};

#define SHIM_SMALL_OPERATOR(op)                                  \
  template <class F>                                             \
  inline Small<F> operator op(Small<F> a, Small<F> b) {          \
    return Small<F>(float(a) op float(b));                       \
  }                                                              \
  template <class F>                                             \
  inline Small<F>& operator op##=(Small<F>& a, Small<F> b) {     \
    return a = a op b;                                           \
  }
SHIM_SMALL_OPERATOR(+)
SHIM_SMALL_OPERATOR(-)
SHIM_SMALL_OPERATOR(*)
SHIM_SMALL_OPERATOR(/)
#undef SHIM_SMALL_OPERATOR

#if defined(__FLT16_MANT_DIG__)
typedef _Float16 Float16;
#else
typedef __fp16 Float16;
#endif

struct Half {
  static uint16_t from(float value) { return bits<uint16_t>(Float16(value)); }
  static uint16_t from(double value) { return bits<uint16_t>(Float16(value)); }
  static float to(uint16_t word) { return bits<Float16>(word); }
};

struct Brain {
  static uint16_t from(float value) {
    uint32_t word = bits<uint32_t>(value);
    if (value != value) return uint16_t(word >> 16 | 0x40);
    return uint16_t((word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  static uint16_t from(double value) { return from(float(value)); }
  static float to(uint16_t word) { return bits<float>(uint32_t(word) << 16); }
};

}  // namespace shim
