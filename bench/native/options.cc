// The flags of the benchmark's own.
#include "options.h"

#include <algorithm>
#include <charconv>
#include <sstream>
#include <thread>

namespace normcore::bench {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};

// The value of the last `--name=value`, which is taken out of the arguments; else the default.
std::string take_flag(int* argc, char** argv, const std::string& name, std::string value) {
  const std::string start = "--" + name + "=";
  int kept = 1;
  for (int i = 1; i < *argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind(start, 0) == 0) {
      value = argument.substr(start.size());
    } else {
      argv[kept++] = argv[i];
    }
  }
  *argc = kept;
  return value;
}

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::istringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

std::vector<std::string> isas_of(const std::string& list) {
  if (list == "all") return available_isas();
  const std::string before = get_isa();
  std::vector<std::string> isas;
  for (const std::string& name : split(list)) {
    set_isa(name);  // throws for one that this CPU has not
    isas.push_back(get_isa());
  }
  set_isa(before);
  return isas;
}

std::vector<int> threads_of(const std::string& list) {
  std::vector<int> threads;
  if (list == "all") {
    for (int n = 1; n <= int(std::thread::hardware_concurrency()); ++n) threads.push_back(n);
    return threads;
  }
  for (const std::string& text : split(list)) {
    int n = 0;
    const auto end = std::from_chars(text.data(), text.data() + text.size(), n);
    if (end.ptr != text.data() + text.size() || n < 1) {
      throw value_error("--threads is " + list + ", expected numbers >= 1 with commas, or all");
    }
    threads.push_back(n);
  }
  return threads;
}

std::vector<DType> dtypes_of(const std::string& list) {
  std::vector<DType> dtypes;
  for (const std::string& name : split(list)) {
    const auto* found = std::find_if(std::begin(kDTypes), std::end(kDTypes),
                                     [&](DType t) { return name == short_name(t); });
    if (found == std::end(kDTypes)) {
      throw value_error("--dtypes is " + list + ", expected some of f32,bf16,f16,f64");
    }
    dtypes.push_back(*found);
  }
  return dtypes;
}

// "x86-64-v3" is v3 in a name.
std::string isa_suffix(const std::string& isa) {
  return std::string("/").append(isa, isa.rfind('-') + 1);
}

}  // namespace

const char* short_name(DType t) {
  constexpr const char* kNames[] = {"f32", "f64", "bf16", "f16"};
  return kNames[static_cast<int>(t)];
}

Options take_options(int* argc, char** argv) {
  Options o;
  o.isas = isas_of(take_flag(argc, argv, "isa", get_isa()));
  o.threads = threads_of(take_flag(argc, argv, "threads", std::to_string(get_num_threads())));
  o.dtypes = dtypes_of(take_flag(argc, argv, "dtypes", "f32,bf16,f16"));
  o.tiny = take_flag(argc, argv, "tiny", "0") == "1";
  return o;
}

std::vector<Setting> Options::one_threaded() const {
  std::vector<Setting> all;
  for (const std::string& isa : isas) {
    all.push_back({isa, 1, isas.size() > 1 ? isa_suffix(isa) : ""});
  }
  return all;
}

std::vector<Setting> Options::settings() const {
  std::vector<Setting> all;
  for (const Setting& one : one_threaded()) {
    for (const int n : threads) {
      all.push_back({one.isa, n, one.suffix});
      if (threads.size() > 1) all.back().suffix += "/threads:" + std::to_string(n);
    }
  }
  return all;
}

}  // namespace normcore::bench
