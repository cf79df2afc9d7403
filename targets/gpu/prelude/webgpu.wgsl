// The thread of the block, which a kernel notes when it begins.
var<private> dz_thread: u32;

var<workgroup> dz_lanes: array<i32, dz_threads>;

fn dz_shuffle_xor(value: i32, mask: i32) -> i32 {
  dz_lanes[dz_thread] = value;
  workgroupBarrier();
  let other = dz_lanes[dz_thread ^ u32(mask)];
  workgroupBarrier();
  return other;
}

// Over each `lanes` consecutive threads: a power of two. a + b and b + a have the same bits, so all of them agree.
fn dz_sum_f32(own: f32, lanes: i32) -> f32 {
  var value = own;
  for (var mask = lanes / 2; mask > 0; mask = mask / 2) { value = value + bitcast<f32>(dz_shuffle_xor(bitcast<i32>(value), mask)); }
  return value;
}

fn dz_sum_u32(own: u32, lanes: i32) -> u32 {
  var value = own;
  for (var mask = lanes / 2; mask > 0; mask = mask / 2) { value = value + bitcast<u32>(dz_shuffle_xor(bitcast<i32>(value), mask)); }
  return value;
}

fn dz_max_f32(own: f32, lanes: i32) -> f32 {
  var value = own;
  for (var mask = lanes / 2; mask > 0; mask = mask / 2) { value = max(value, bitcast<f32>(dz_shuffle_xor(bitcast<i32>(value), mask))); }
  return value;
}

fn dz_max_i32(own: i32, lanes: i32) -> i32 {
  var value = own;
  for (var mask = lanes / 2; mask > 0; mask = mask / 2) { value = max(value, dz_shuffle_xor(value, mask)); }
  return value;
}

var<workgroup> dz_common: i32;

fn dz_uniform(value: i32) -> i32 {
  if (dz_thread == 0u) { dz_common = value; }
  return workgroupUniformLoad(&dz_common);
}

fn dz_fma(a: f32, b: f32, c: f32) -> f32 { return fma(a, b, c); }

// To the nearest integer, ties to even.
fn dz_round(value: f32) -> i32 { return i32(round(value)); }

// c and the products of four signed bytes.
fn dz_dot4(a: i32, b: i32, c: i32) -> i32 {
  return c + extractBits(a, 0u, 8u) * extractBits(b, 0u, 8u) + extractBits(a, 8u, 8u) * extractBits(b, 8u, 8u)
    + extractBits(a, 16u, 8u) * extractBits(b, 16u, 8u) + (a >> 24u) * (b >> 24u);
}

// The value of the f16 in the low half of a word. Subnormal numbers, which a device may take for 0, become integers.
fn dz_half(bits: u32) -> f32 {
  let magnitude = bits & 0x7fffu;
  let bias = select(0x38000000u, 0x70000000u, magnitude >= 0x7c00u);
  let normal = bitcast<f32>((magnitude << 13u) + bias);
  let value = select(normal, f32(magnitude) * 0x1p-24f, magnitude < 0x400u);
  return select(value, -value, (bits & 0x8000u) != 0u);
}

// the high word of a product
fn dz_multiply_high(a: u32, b: u32) -> u32 {
  let a_low = a & 0xffffu;
  let a_high = a >> 16u;
  let b_low = b & 0xffffu;
  let b_high = b >> 16u;
  let middle = a_high * b_low + ((a_low * b_low) >> 16u);
  let other = a_low * b_high + (middle & 0xffffu);
  return a_high * b_high + (middle >> 16u) + (other >> 16u);
}

// Correctly rounded, where operands and result are normal numbers: by long division of the significands.
fn dz_divide(a: f32, b: f32) -> f32 {
  let x = bitcast<u32>(a);
  let y = bitcast<u32>(b);
  let x_exponent = i32((x >> 23u) & 255u);
  let y_exponent = i32((y >> 23u) & 255u);
  let divisor = (y & 0x7fffffu) | 0x800000u;
  var rest = (x & 0x7fffffu) | 0x800000u;
  var exponent = x_exponent - y_exponent + 127;
  if (rest < divisor) {
    rest = rest << 1u;
    exponent = exponent - 1;
  }
  if (min(min(x_exponent, y_exponent), exponent) < 1 || max(max(x_exponent, y_exponent), exponent) > 253) {
    return a / b;
  }
  var quotient = 0u;
  for (var i = 0; i < 25; i++) {
    quotient = quotient << 1u;
    if (rest >= divisor) {
      rest = rest - divisor;
      quotient = quotient | 1u;
    }
    rest = rest << 1u;
  }
  let up = quotient & select(quotient >> 1u, 1u, rest != 0u) & 1u;
  let magnitude = (u32(exponent - 1) << 23u) + (quotient >> 1u) + up;
  return bitcast<f32>(((x ^ y) & 0x80000000u) | magnitude);
}

// The bits of 1 / (2 pi) after the point, from bit `first` on.
fn dz_turn_bits(first: i32) -> u32 {
  var words = array<u32, 6>(0x28be60dbu, 0x9391054au, 0x7f09d5f4u, 0x7d4d3770u, 0x36d8a566u, 0x4f10e410u);
  let word = first >> 5u;
  let shift = u32(first & 31);
  let high = select(0u, words[clamp(word, 0, 5)], word >= 0 && word < 6);
  let low = select(0u, words[clamp(word + 1, 0, 5)], word >= -1 && word < 5);
  return select((high << shift) | (low >> (32u - max(shift, 1u))), high, shift == 0u);
}

// How far an angle goes round, in units of 2^-32 turns: the integer that an f32 is times these bits, exactly.
fn dz_turns(angle: f32) -> u32 {
  let bits = bitcast<u32>(angle);
  let exponent = i32((bits >> 23u) & 255u) - 150;
  let significand = (bits & 0x7fffffu) | 0x800000u;
  let low = dz_multiply_high(significand, dz_turn_bits(exponent + 32));
  let turns = significand * dz_turn_bits(exponent) + low;
  return select(turns, 0u - turns, (bits & 0x80000000u) != 0u);
}

// The sine of turns; polynomials of the Cephes library for an eighth of a turn to either side.
fn dz_sin_of(turns: u32) -> f32 {
  let quarter = (turns + 0x20000000u) >> 30u;
  let x = f32(i32(turns - (quarter << 30u))) * 1.46291807926715968105133e-9f;
  let z = x * x;
  let sine = x + x * z * (-1.6666654611e-1f + z * (8.3321608736e-3f - z * 1.9515295891e-4f));
  let cosine = 1.0f - 0.5f * z + z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
  let value = select(sine, cosine, (quarter & 1u) != 0u);
  return select(value, -value, (quarter & 2u) != 0u);
}

// for any angle
fn dz_sin(angle: f32) -> f32 { return dz_sin_of(dz_turns(angle)); }

fn dz_cos(angle: f32) -> f32 { return dz_sin_of(dz_turns(angle) + 0x40000000u); }
