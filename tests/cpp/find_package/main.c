/* What a C program writes: every function once, with results that are known by hand. */
#include <math.h>
#include <normcore/c_api.h>
#include <stdio.h>
#include <string.h>

static int failures = 0;

static void expect_status(const char* what, normcore_status status) {
  if (status == NORMCORE_OK) return;
  printf("%s: %s\n", what, normcore_last_error());
  ++failures;
}

static void expect(const char* what, const float* got, const float* want, int n) {
  for (int i = 0; i < n; ++i) {
    if (fabsf(got[i] - want[i]) < 1e-5f) continue;
    printf("%s: element %d is %g, expected %g\n", what, i, got[i], want[i]);
    ++failures;
  }
}

static void expect_error(const char* what, normcore_status got, normcore_status want,
                         const char* part) {
  if (got == want && strstr(normcore_last_error(), part)) return;
  printf("%s: status %d with \"%s\", expected %d with \"%s\"\n", what, (int)got,
         normcore_last_error(), (int)want, part);
  ++failures;
}

#define IN(values, ndim, ...) \
  (&(normcore_const_tensor){values, NORMCORE_FLOAT32, ndim, (int64_t[]){__VA_ARGS__}, NULL})
#define OUT(values, ndim, ...) \
  (&(normcore_tensor){values, NORMCORE_FLOAT32, ndim, (int64_t[]){__VA_ARGS__}, NULL})
#define EXPECT(call, ...)                      \
  do {                                         \
    memset(y, 0xff, sizeof y); /* NaN */       \
    expect_status(#call, call);                \
    expect(#call, y, (float[])__VA_ARGS__, 4); \
  } while (0)

static void rows(void) {
  const float x[4] = {1, 3, -3, 3}, weight[2] = {1, 2}, bias[2] = {0, 5}, one[4] = {1, 1, 1, 1};
  float y[4], h[4];
  normcore_layer_norm_options layer = normcore_layer_norm_defaults();
  layer.eps = 0;
  EXPECT(normcore_layer_norm(IN(x, 2, 2, 2), IN(weight, 1, 2), IN(bias, 1, 2), OUT(y, 2, 2, 2),
                             &layer, NULL),
         {-1, 7, -1, 7});
  layer.residual = IN(one, 2, 2, 2);
  layer.h = OUT(h, 2, 2, 2);
  layer.axes = (int32_t[]){0, 1};
  layer.n_axes = 2;
  EXPECT(normcore_layer_norm(IN(x, 2, 2, 2), NULL, NULL, OUT(y, 2, 2, 2), &layer, NULL),
         {0, 2 / sqrtf(6), -4 / sqrtf(6), 2 / sqrtf(6)});
  expect("h", h, (float[]){2, 4, -2, 4}, 4);

  normcore_rms_norm_options rms = normcore_rms_norm_defaults();
  rms.eps = 0;
  EXPECT(normcore_rms_norm(IN(x, 2, 2, 2), IN(weight, 1, 2), OUT(y, 2, 2, 2), &rms, NULL),
         {1 / sqrtf(5), 6 / sqrtf(5), -1, 2});
  normcore_normalize_options unit = normcore_normalize_defaults();
  unit.ord = 1;
  EXPECT(normcore_normalize(IN(x, 2, 2, 2), OUT(y, 2, 2, 2), &unit, NULL),
         {0.25f, 0.75f, -0.5f, 0.5f});
}

static void channels(void) {
  /* One sample, two channels, two positions; a channel has mean 2 or 0 and deviation 1 or 3. */
  const float x[4] = {1, 3, -3, 3}, mean[2] = {1, 0}, var[2] = {4, 9}, spread[2] = {2, 3};
  const float rho[2] = {1, 0}, even[3] = {0, 0, 0}, instance[3] = {50, 0, 0};
  float y[4];
  const normcore_const_tensor* in = IN(x, 3, 1, 2, 2);
  const normcore_tensor* out = OUT(y, 3, 1, 2, 2);
  normcore_channel_options given = normcore_channel_defaults(), own = given;
  given.eps = own.eps = 0;
  given.running_mean = IN(mean, 1, 2);
  given.running_spread = IN(var, 1, 2);

  EXPECT(normcore_batch_norm(in, NULL, NULL, out, &given, NULL), {0, 1, -1, 1});
  EXPECT(normcore_batch_norm(in, NULL, NULL, out, &own, NULL), {-1, 1, -1, 1});
  EXPECT(normcore_instance_norm(in, NULL, NULL, out, &given, NULL), {0, 1, -1, 1});
  EXPECT(normcore_instance_norm(in, NULL, NULL, out, &own, NULL), {-1, 1, -1, 1});
  EXPECT(normcore_group_norm(in, 2, NULL, NULL, out, &own, NULL), {-1, 1, -1, 1});
  EXPECT(normcore_batch_instance_norm(in, IN(rho, 1, 2), NULL, NULL, out, &given, NULL),
         {0, 1, -1, 1});
  EXPECT(normcore_switchable_norm(in, IN(instance, 1, 3), IN(instance, 1, 3), NULL, NULL, out,
                                  &given, NULL),
         {-1, 1, -1, 1});
  expect_status("switchable", normcore_switchable_norm(in, IN(even, 1, 3), IN(even, 1, 3), NULL,
                                                       NULL, out, &own, NULL));

  given.running_spread = IN(spread, 1, 2);
  EXPECT(normcore_batch_renorm(in, NULL, NULL, out, &given, NULL), {0, 1, -1, 1});
  EXPECT(normcore_lp_batch_norm(in, 1, NULL, NULL, out, &given, NULL), {0, 1, -1, 1});
  EXPECT(normcore_topk_batch_norm(in, 1, NULL, NULL, out, &given, NULL), {0, 1, -1, 1});
  given.running_spread = NULL;
  EXPECT(normcore_mean_only_batch_norm(in, NULL, out, &given, NULL), {0, 2, -3, 3});

  /* The same in place, with positions before channels, in half the precision. */
  const uint16_t positions[4] = {0x3c00, 0xc200, 0x4200, 0x4200}; /* 1, -3, 3, 3 */
  uint16_t half[4];
  memcpy(half, positions, sizeof half);
  const int64_t shape[3] = {1, 2, 2}, strides[3] = {4, 2, 1};
  given.running_spread = IN(var, 1, 2);
  given.channel_axis = -1;
  expect_status("half",
                normcore_batch_norm(
                    &(normcore_const_tensor){half, NORMCORE_FLOAT16, 3, shape, strides}, NULL, NULL,
                    &(normcore_tensor){half, NORMCORE_FLOAT16, 3, shape, strides}, &given, NULL));
  const uint16_t want[4] = {0x0000, 0xbc00, 0x3c00, 0x3c00};
  if (memcmp(half, want, sizeof half)) expect_status("half, in place", NORMCORE_INTERNAL_ERROR);
}

static void weights_and_neighbours(void) {
  const float x[4] = {3, 4, 0, 5}, g[2] = {10, 1}, u[2] = {1, 0}, zero[4] = {0, 0, 0, 0};
  const float diagonal[4] = {4, 0, 0, 2}, ones[2] = {1, 1}, sigma[1] = {1};
  float y[4];
  double norm = 0;
  EXPECT(normcore_weight_norm(IN(x, 2, 2, 2), IN(g, 1, 2), OUT(y, 2, 2, 2), NULL, NULL),
         {6, 8, 0, 1});
  EXPECT(normcore_spectral_norm(IN(diagonal, 2, 2, 2), IN(u, 1, 2), NULL, OUT(y, 2, 2, 2), &norm,
                                NULL, NULL),
         {1, 0, 0, 0.5f});
  if (fabs(norm - 4) > 1e-6) expect_status("sigma", NORMCORE_INTERNAL_ERROR);
  EXPECT(normcore_divisive_norm(IN(x, 2, 2, 2), IN(zero, 2, 2, 2), IN(ones, 1, 2), NULL,
                                OUT(y, 2, 2, 2), NULL, NULL),
         {3, 4, 0, 5});
  EXPECT(
      normcore_gdn(IN(x, 2, 2, 2), IN(ones, 1, 2), IN(zero, 2, 2, 2), OUT(y, 2, 2, 2), NULL, NULL),
      {3, 4, 0, 5});
  normcore_local_response_norm_options response = normcore_local_response_norm_defaults();
  response.alpha = 2;
  response.beta = 1;
  EXPECT(normcore_local_response_norm(IN(x, 2, 2, 2), 1, OUT(y, 2, 2, 2), &response, NULL),
         {3 / 19.f, 4 / 33.f, 0, 5 / 51.f});
  const int64_t window[1] = {1};
  const normcore_local_divisive_norm_options local = {window, window, 1, 1, 1};
  EXPECT(normcore_local_divisive_norm(IN(x, 3, 1, 1, 4), IN(sigma, 0, 0), NULL, NULL,
                                      OUT(y, 3, 1, 1, 4), &local, NULL),
         {0, 0, 0, 0});
}

static void errors(void) {
  const float x[4] = {0};
  float y[4];
  const int64_t shape[2] = {2, 2};
  const normcore_const_tensor bad = {x, 7, 2, shape, NULL};
  expect_error("dtype", normcore_layer_norm(&bad, NULL, NULL, OUT(y, 2, 2, 2), NULL, NULL),
               NORMCORE_TYPE_ERROR, "x->dtype is 7");
  expect_error("null", normcore_layer_norm(NULL, NULL, NULL, OUT(y, 2, 2, 2), NULL, NULL),
               NORMCORE_VALUE_ERROR, "x is null");
  expect_error("shape", normcore_rms_norm(IN(x, 2, 2, 2), IN(x, 1, 3), OUT(y, 2, 2, 2), NULL, NULL),
               NORMCORE_VALUE_ERROR, "weight has shape (3,), expected (2,)");
  expect_error("isa", normcore_set_isa("v9"), NORMCORE_VALUE_ERROR, "v9");
  expect_error("threads", normcore_set_num_threads(0), NORMCORE_VALUE_ERROR, "0");
  expect_error("windows",
               normcore_local_divisive_norm(IN(x, 3, 1, 1, 4), IN(x, 0, 0), NULL, NULL,
                                            OUT(y, 3, 1, 1, 4), NULL, NULL),
               NORMCORE_VALUE_ERROR, "options is null");
}

int main(void) {
  expect_status("set_isa", normcore_set_isa(normcore_get_isa()));
  expect_status("set_num_threads", normcore_set_num_threads(normcore_get_num_threads()));
  rows();
  channels();
  weights_and_neighbours();
  errors();
  printf("normcore %s from C on %s, %d threads\n", normcore_version(), normcore_get_isa(),
         (int)normcore_get_num_threads());
  return failures != 0;
}
