// The DLPack exchange structures (ABI versions 0 and 1) and the table of an array's class, as the
// specification lays them out in memory.
#pragma once

#include <cstdint>

namespace normcore::dlpack {

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3 };
enum TypeCode : std::uint8_t { kFloat = 2, kBfloat = 4, kBool = 6 };

struct Device {
  std::int32_t type;
  std::int32_t id;
};
struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};
struct DLTensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: C-contiguous
  std::uint64_t byte_offset;
};

struct Managed {
  static constexpr const char* kName = "dltensor";
  static constexpr const char* kUsed = "used_dltensor";
  DLTensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct ManagedVersioned {
  static constexpr const char* kName = "dltensor_versioned";
  static constexpr const char* kUsed = "used_dltensor_versioned";
  static constexpr std::uint32_t kMajor = 1;
  static constexpr std::uint64_t kReadOnly = 1;
  struct {
    std::uint32_t major, minor;
  } version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  DLTensor tensor;
};

// What an array's library does without Python: the capsule __dlpack_c_exchange_api__ of the class.
// All return 0, or -1 with a Python error set (the allocator: with what it told `set_error`). None
// orders streams.
struct ExchangeApi {
  static constexpr const char* kAttribute = "__dlpack_c_exchange_api__";
  static constexpr const char* kName = "dlpack_exchange_api";
  struct Header {
    std::uint32_t major, minor;
    Header* older;  // of an older version, or null
  } header;
  int (*allocate)(DLTensor* like, ManagedVersioned** out, void* error,
                  void (*set_error)(void* error, const char* kind, const char* message));
  int (*from_object)(void* object, ManagedVersioned** out);
  int (*to_object)(ManagedVersioned* taken_over, void** out);
  int (*view_object)(void* object, DLTensor* out);  // lent by the object; may be null
  int (*current_stream)(std::int32_t device_type, std::int32_t device, void** out);
};

}  // namespace normcore::dlpack
