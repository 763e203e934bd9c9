// A network with batch norms, and the same one with each of them folded into the layer before it:
// they must give the same answers, and those that Python gave.
//
//   fold digits.safetensors
//
// Exit status 1 where they do not.
#include <normcore/normcore.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <limits>
#include <span>
#include <vector>

#include "matmul.h"
#include "network.h"
#include "safetensors.h"

namespace {

using example::Network;

// Of the largest logit. Results differ by the rounding of sums of up to 512 products in three
// layers, and of the folded weights: 2 ulps when measured. A wrong formula changes the first
// digits.
constexpr float kTolerance = 64 * std::numeric_limits<float>::epsilon();
constexpr int kRounds = 51;

std::vector<std::ptrdiff_t> classes(std::span<const float> logits) {
  std::vector<std::ptrdiff_t> result;
  for (auto row = logits.begin(); row != logits.end(); row += Network::kClasses) {
    result.push_back(std::max_element(row, row + Network::kClasses) - row);
  }
  return result;
}

double accuracy(std::span<const float> logits, std::span<const std::int64_t> labels) {
  const auto found = classes(logits);
  std::ptrdiff_t hits = 0;
  for (std::size_t i = 0; i < found.size(); ++i) hits += found[i] == labels[i];
  return static_cast<double>(hits) / static_cast<double>(found.size());
}

// Prints how far logits are from others; returns whether they are the same answers.
bool compare(const char* what, std::span<const float> logits, std::span<const float> others) {
  float difference = 0, largest = 0;
  bool finite = true;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    difference = std::max(difference, std::abs(logits[i] - others[i]));
    largest = std::max(largest, std::abs(others[i]));
    finite = finite && std::isfinite(logits[i]) && std::isfinite(others[i]);
  }
  const bool same_classes = classes(logits) == classes(others);
  std::printf("%s: logits up to %.3g differ by at most %.2g, expected %.2g; classes %s\n", what,
              largest, difference, kTolerance * largest, same_classes ? "the same" : "DIFFER");
  return finite && difference <= kTolerance * largest && same_classes;
}

double seconds(Network& network, std::span<const float> images, std::ptrdiff_t n) {
  const auto start = std::chrono::steady_clock::now();
  network(images.data(), n);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

bool run(const char* path) {
  const example::SafeTensors file(path);
  const auto images = file.get<float>("images", {-1, Network::kSide, Network::kSide, 1});
  const std::ptrdiff_t n = file.shape("images")[0];
  const auto labels = file.get<std::int64_t>("labels", {n});
  const auto expected = file.get<float>("logits", {n, Network::kClasses});

  // These arrays are small: threads would wait for each other.
  example::use_one_blas_thread();
  normcore::set_num_threads(1);
  Network network(file);
  Network folded = network.folded();
  const std::span logits(network(images.data(), n), expected.size());
  const std::span folded_logits(folded(images.data(), n), expected.size());
  std::printf("accuracy on %td images: %.1f %% with batch norms, %.1f %% folded\n", n,
              100 * accuracy(logits, labels), 100 * accuracy(folded_logits, labels));
  const bool as_python = compare("with batch norms, and Python", logits, expected);
  const bool as_before = compare("folded, and with batch norms", folded_logits, logits);

  std::vector<double> before, after, ratios;
  for (int i = 0; i < kRounds; ++i) {
    before.push_back(seconds(network, images, n));
    after.push_back(seconds(folded, images, n));
    ratios.push_back(before.back() / after.back());
  }
  for (auto* values : {&before, &after, &ratios}) {
    std::nth_element(values->begin(), values->begin() + kRounds / 2, values->end());
  }
  std::printf("time of an image: %.2f us with batch norms, %.2f us folded, ratio %.2f (%s)\n",
              1e6 * before[kRounds / 2] / n, 1e6 * after[kRounds / 2] / n, ratios[kRounds / 2],
              example::matmul_library());
  return as_python && as_before;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: fold FILE.safetensors\n");
    return EXIT_FAILURE;
  }
  try {
    if (run(argv[1])) return EXIT_SUCCESS;
    std::fprintf(stderr, "fold: the answers are not the same\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "fold: %s\n", error.what());
  }
  return EXIT_FAILURE;
}
