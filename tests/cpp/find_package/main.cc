// What a user of the library writes: two calls whose results are known by hand, and a wrong one.
#include <normcore/normcore.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>

namespace {

int failures = 0;

void expect(const char* what, float got, double want) {
  if (std::abs(got - want) < 1e-5) return;
  std::printf("%s is %g, expected %g\n", what, got, want);
  ++failures;
}

}  // namespace

int main() {
  // Two rows of mean 2 and 0, and deviation 1 and 3.
  const float x[2][4] = {{1, 3, 1, 3}, {-3, 3, 3, -3}};
  const float weight[4] = {1, 1, 2, 1}, bias[4] = {0, 0, 0, 5};
  float y[2][4];
  normcore::LayerNormOptions layer;
  layer.eps = 0;
  normcore::layer_norm({&x[0][0], {2, 4}}, {weight, {4}}, {bias, {4}}, {&y[0][0], {2, 4}}, layer);
  const float want[2][4] = {{-1, 1, -2, 6}, {-1, 1, 2, 4}};
  for (int i = 0; i < 8; ++i) expect("layer_norm", (&y[0][0])[i], (&want[0][0])[i]);

  // Two channels of mean 0 and 10; the running statistics move a tenth of the way.
  const float images[2][2][2] = {{{-1, 1}, {8, 12}}, {{1, -1}, {12, 8}}};
  float normalized[2][2][2];
  float running_mean[2] = {0, 0}, running_var[2] = {1, 1};
  normcore::BatchNormOptions batch;
  batch.training = true;
  batch.running_mean = {running_mean, {2}};
  batch.running_var = {running_var, {2}};
  normcore::batch_norm({&images[0][0][0], {2, 2, 2}}, {}, {}, {&normalized[0][0][0], {2, 2, 2}},
                       batch);
  expect("batch_norm", normalized[0][1][1], 2 / std::sqrt(4 + 1e-5));
  expect("batch_norm", normalized[1][0][0], 1 / std::sqrt(1 + 1e-5));
  expect("running_mean", running_mean[1], 1);
  expect("running_var", running_var[1], 0.9 + 0.1 * 16 / 3);

  // Also where the library was built by another compiler.
  bool caught = false;
  try {
    normcore::layer_norm({&x[0][0], {2, 4}}, {weight, {3}}, {}, {&y[0][0], {2, 4}}, layer);
  } catch (const std::invalid_argument& e) {
    caught = dynamic_cast<const normcore::value_error*>(&e) && std::strstr(e.what(), "weight");
  }
  expect("whether the error was caught", caught, 1);
  expect("errors on their way", static_cast<float>(std::uncaught_exceptions()), 0);

  std::printf("normcore %s on %s\n", NORMCORE_VERSION, normcore::get_isa().c_str());
  return failures;
}
