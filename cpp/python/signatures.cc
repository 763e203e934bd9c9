// The signatures of the methods (ops/signatures.h) as plain tuples and dicts: what the tests, the
// benchmarks and the stub are held against.
#include "ops/signatures.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <initializer_list>
#include <string_view>
#include <vector>

#include "bind.h"

namespace normcore::python {
namespace {

const char* name_of(Family family) {
  return family == Family::channels ? "channels" : family == Family::rows ? "rows" : "weights";
}
const char* name_of(OwnShape shape) {
  return shape == OwnShape::channels ? "channels" : shape == OwnShape::logits ? "three" : "kept";
}
const char* name_of(Follows follows) {
  return follows == Follows::mean       ? "mean"
         : follows == Follows::variance ? "variance"
                                        : "deviation";
}

template <class T>
constexpr const char* kTypeName = std::is_same_v<T, bool>     ? "bool"
                                  : std::is_same_v<T, double> ? "float"
                                                              : "int";

// An argument, whatever the method, so that one function describes them all.
struct Entry {
  Kind kind;
  const char* name;
  Needed needed;
  const char* detail = "";    // an array's shape, what a buffer follows, the type of an option
  const char* gradient = "";  // of a method's own array
  Bounds bounds{};
  double initial = 0;  // of an option
};

template <class A, class Options>
Entry entry_of(const A& a, const Options& defaults) {
  Entry e{A::kind, a.name, a.needed};
  if constexpr (A::kind == Kind::own) {
    e.detail = name_of(a.shape);
    e.gradient = a.gradient;
  }
  if constexpr (A::kind == Kind::buffer) e.detail = name_of(a.follows);
  if constexpr (A::kind == Kind::option || A::kind == Kind::learns) {
    e.detail = kTypeName<std::remove_cvref_t<decltype(defaults.*a.member)>>;
    e.initial = static_cast<double>(defaults.*a.member);
  }
  if constexpr (A::kind == Kind::option) e.bounds = a.bounds;
  return e;
}

py::dict option_of(const Entry& e) {
  py::dict d;
  d["type"] = e.detail;
  // As a value of its type: int(1.0) is 1.
  d["default"] = py::module_::import("builtins").attr(e.detail)(e.initial);
  d["least"] = e.bounds.least;
  d["most"] = e.bounds.most;
  d["above_in_training"] = e.bounds.above;
  d["infinite"] = e.bounds.infinite;
  return d;
}

bool is_one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Names are those of the function's arguments and results.
py::dict describe(const char* function, Family family, std::initializer_list<Entry> entries,
                  const std::vector<const char*>& statistics) {
  py::list arguments, forward_only, inference, own, affine, buffers, gradients;
  py::dict options, d;
  const auto has_any = [&](Kind kind) {
    return std::any_of(entries.begin(), entries.end(), [=](auto& e) { return e.kind == kind; });
  };
  d["learns"] = py::none();
  gradients.append(family == Family::weights ? "dv" : "dx");
  for (const Entry& e : entries) {
    arguments.append(e.name);
    if (e.needed == Needed::forward) forward_only.append(e.name);
    const bool in_every_call = is_one_of(e.name, {"eps", "channel_axis"});
    if (e.kind == Kind::option && e.needed == Needed::always && !in_every_call) {
      inference.append(e.name);
    }
    if (e.kind == Kind::own) {
      own.append(py::make_tuple(e.name, e.detail));
      gradients.append(e.gradient);
    }
    if (e.kind == Kind::weight || e.kind == Kind::bias) {
      affine.append(e.name);
      gradients.append(std::string("d") + e.name);
    }
    if (e.kind == Kind::buffer) buffers.append(py::make_tuple(e.name, e.detail));
    if (e.kind == Kind::learns) d["learns"] = e.name;
    if (e.kind == Kind::learns || e.kind == Kind::option) options[e.name] = option_of(e);
  }
  d["function"] = function;
  d["family"] = name_of(family);
  d["arguments"] = py::tuple(arguments);
  d["forward_only"] = py::tuple(forward_only);
  d["inference"] = py::tuple(inference);  // options of a method's own that count without training
  d["own"] = py::tuple(own);
  d["affine"] = py::tuple(affine);
  d["buffers"] = py::tuple(buffers);
  d["options"] = options;
  d["statistics"] = py::tuple(py::cast(statistics));
  d["gradients"] = py::tuple(gradients);
  d["has_mask"] = has_any(Kind::mask);
  d["has_groups"] = has_any(Kind::groups);
  d["has_residual"] = has_any(Kind::residual);
  return d;
}

template <class Method>
py::dict describe(const char* type) {
  using S = Signature<Method>;
  std::vector<const char*> statistics;
  // A norm alone leaves none.
  if (S::family == Family::channels || has<Method>(Kind::residual)) {
    if (kReportsMean<Method>) statistics.push_back("mean");
    if (kReportsRstd<Method>) statistics.push_back("rstd");
    statistics.push_back("pooled");
    if (kMaySaveGiven<Method>) statistics.push_back("given");
  }
  const typename S::Options defaults{};
  py::dict d = std::apply(
      [&](const auto&... a) {
        return describe(S::name, S::family, {entry_of(a, defaults)...}, statistics);
      },
      S::arguments);
  d["struct"] = type;
  d["over_the_batch"] = over_the_batch<Method>();
  d["always_given"] = kAlwaysGiven<Method>;
  return d;
}

// Of each line of methods.def.
py::dict signatures() {
  py::dict all;
#define NORMCORE_METHOD(name, Method) all[#name] = describe<Method>(#Method);
#include "normcore/methods.def"
#undef NORMCORE_METHOD
  return all;
}

}  // namespace

void register_signatures(py::module_& m) {
  m.def("signatures", &signatures, "What each registered method takes and gives.");
}

}  // namespace normcore::python
