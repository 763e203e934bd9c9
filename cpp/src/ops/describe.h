// The signatures of the methods as text, in JSON: what tests, benchmarks and layers read by
// `_core.signatures`, and what `dev.py signatures` writes sources from.
#pragma once

#include <charconv>
#include <cmath>
#include <cstddef>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "ops/signatures.h"

namespace normcore {

class Json {
 public:
  template <class T>
  Json& add(const char* name, const T& value) {
    text_ += std::string(text_.size() > 1 ? ", " : "") + '"' + name + "\": " + of(value);
    return *this;
  }
  std::string object() const { return text_ + "}"; }

  static std::string of(std::nullptr_t) { return "null"; }
  static std::string of(bool v) { return v ? "true" : "false"; }
  static std::string of(Index v) { return std::to_string(v); }
  static std::string of(int v) { return std::to_string(v); }
  static std::string of(const char* v) { return '"' + std::string(v) + '"'; }
  static std::string of(const Json& v) { return v.object(); }
  static std::string of(double v) {
    if (std::isinf(v)) return v > 0 ? "Infinity" : "-Infinity";
    char digits[32];  // whatever the locale
    const std::string text(digits, std::to_chars(digits, digits + sizeof(digits), v).ptr);
    // A float is no int.
    return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
  }
  class List {
   public:
    template <class T>
    void append(const T& value) {
      text_ += (text_.size() > 1 ? ", " : "") + Json::of(value);
    }
    std::string text() const { return text_ + "]"; }

   private:
    std::string text_ = "[";
  };
  static std::string of(const List& v) { return v.text(); }

 private:
  std::string text_ = "{";
};

inline const char* name_of(Family family) {
  return family == Family::channels ? "channels" : family == Family::rows ? "rows" : "weights";
}
inline const char* name_of(OwnShape shape) {
  return shape == OwnShape::channels ? "channels" : shape == OwnShape::logits ? "three" : "kept";
}
inline const char* name_of(Follows follows) {
  return follows == Follows::mean       ? "mean"
         : follows == Follows::variance ? "variance"
                                        : "deviation";
}
inline const char* name_of(Pool pool) {
  switch (pool) {
    case Pool::instance:
      return "instance";
    case Pool::batch:
      return "batch";
    case Pool::sample:
      return "sample";
    case Pool::group:
      return "group";
    case Pool::given:
      return "given";
  }
  return "";
}
template <class T>
constexpr const char* kTypeName = std::is_same_v<T, bool>     ? "bool"
                                  : std::is_same_v<T, double> ? "float"
                                                              : "int";

inline Json::List pair(const char* name, const char* detail) {
  Json::List both;
  both.append(name);
  both.append(detail);
  return both;
}

// Names are those of the function's arguments and results.
template <class Method>
Json describe(const char* type) {
  using S = Signature<Method>;
  const typename S::Options defaults{};
  Json::List arguments, forward_only, inference, own, affine, buffers, statistics, gradients;
  Json options;
  Json d;
  Json::List pools;
  for (const Pool pool : Method::pools) pools.append(name_of(pool));
  d.add("function", S::name).add("struct", type).add("family", name_of(S::family));
  d.add("pools", pools);
  gradients.append(names_of(S::family).dx);
  for_each_argument<Method>([&](const auto& a) {
    constexpr Kind kind = std::remove_cvref_t<decltype(a)>::kind;
    arguments.append(a.name);
    if (a.needed == Needed::forward) forward_only.append(a.name);
    if constexpr (kind == Kind::own) {
      own.append(pair(a.name, name_of(a.shape)));
      gradients.append(a.gradient);
    }
    if constexpr (kind == Kind::weight || kind == Kind::bias) {
      affine.append(a.name);
      gradients.append(std::string("d").append(a.name).c_str());
    }
    if constexpr (kind == Kind::buffer) buffers.append(pair(a.name, name_of(a.follows)));
    if constexpr (kind == Kind::learns) d.add("learns", a.name);
    if constexpr (kind == Kind::learns || kind == Kind::option) {
      const auto initial = defaults.*a.member;
      Json option;
      option.add("type", kTypeName<std::remove_cvref_t<decltype(initial)>>).add("default", initial);
      Bounds bounds{};
      if constexpr (kind == Kind::option) bounds = a.bounds;
      option.add("least", bounds.least).add("most", bounds.most);
      option.add("above_in_training", bounds.above).add("infinite", bounds.infinite);
      options.add(a.name, option);
      const std::string_view name = a.name;
      const bool always = kind == Kind::option && a.needed == Needed::always;
      if (always && name != "eps" && name != "channel_axis") inference.append(a.name);
    }
  });
  if (kLeavesStats<Method>) {
    if (kReportsMean<Method>) statistics.append("mean");
    if (kReportsRstd<Method>) statistics.append("rstd");
    statistics.append("pooled");
    if (kMaySaveGiven<Method>) statistics.append("given");
  }
  if constexpr (!has<Method>(Kind::learns)) d.add("learns", nullptr);
  d.add("arguments", arguments).add("forward_only", forward_only);
  d.add("inference", inference);  // options of its own that count without training
  d.add("own", own).add("affine", affine).add("buffers", buffers).add("options", options);
  d.add("statistics", statistics).add("gradients", gradients);
  d.add("has_mask", has<Method>(Kind::mask)).add("has_groups", has<Method>(Kind::groups));
  d.add("has_residual", has<Method>(Kind::residual));
  d.add("over_the_batch", over_the_batch<Method>()).add("always_given", kAlwaysGiven<Method>);
  return d;
}

// Of each line of methods.def.
inline std::string describe_signatures() {
  Json all;
#define NORMCORE_METHOD(name, Method) all.add(#name, describe<Method>(#Method));
#include "normcore/methods.def"
#undef NORMCORE_METHOD
  return all.object();
}

}  // namespace normcore
