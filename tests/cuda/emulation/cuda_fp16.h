// The half type of CUDA on the host, for tests alone.
#pragma once

struct __half {
  _Float16 value;
};
struct float2 {
  float x, y;
};
struct __half2 {
  __half x, y;
};
inline float __low2float(__half2 v) { return float(v.x.value); }
inline float __high2float(__half2 v) { return float(v.y.value); }
inline float2 __half22float2(__half2 v) { return {float(v.x.value), float(v.y.value)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {{_Float16(x)}, {_Float16(y)}}; }
inline float __half2float(__half v) { return float(v.value); }
inline __half __float2half_rn(float v) { return {_Float16(v)}; }
