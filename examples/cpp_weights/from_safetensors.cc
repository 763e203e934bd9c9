// Layer norm with NAME.weight and NAME.bias of a safetensors file, as torch names them. Rows of
// float32 come from standard input:
//
//   from_safetensors model.safetensors NAME <rows >normalized
#include <normcore/normcore.h>

#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "safetensors.h"

int main(int argc, char** argv) try {
  if (argc != 3) throw std::invalid_argument("usage: from_safetensors FILE NAME <rows >normalized");
  const example::SafeTensors file(argv[1]);
  const std::string name = argv[2];
  const auto weight = file.get<float>(name + ".weight", {-1});
  const std::ptrdiff_t n = std::ssize(weight);
  const auto bias = file.get<float>(name + ".bias", {n});

  std::vector<float> row(weight.size());
  char* bytes = reinterpret_cast<char*>(row.data());
  const auto size = static_cast<std::streamsize>(row.size() * sizeof(float));
  while (std::cin.read(bytes, size)) {
    normcore::layer_norm({row.data(), {1, n}}, {weight.data(), {n}}, {bias.data(), {n}},
                         {row.data(), {1, n}});
    std::cout.write(bytes, size);
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
