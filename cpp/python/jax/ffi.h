// XLA's foreign function interface of C, version 0.1, as far as the handlers of normcore.jax use
// it. It is declared here, so that neither a build nor a wheel of normcore needs jaxlib, and one
// wheel serves every jaxlib from 0.6.1 on: later versions of the interface only add to the ends of
// structs. tests/bindings/jax_ffi_layout.cc compares the declarations with jaxlib's own header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace normcore::python::jax::ffi {

inline constexpr int kMajorVersion = 0;
inline constexpr int kMinorVersion = 1;

enum DataType : std::int32_t {
  kBool = 1,
  kInt64 = 5,
  kUint32 = 8,
  kFloat16 = 10,
  kFloat32 = 11,
  kFloat64 = 12,
  kBFloat16 = 16,
};
enum ExtensionType : std::int32_t { kMetadata = 1 };
enum Stage : std::int32_t { kExecute = 3 };
enum AttributeType : std::int32_t { kArray = 1, kScalar = 3 };
enum ErrorCode : std::int32_t { kInvalidArgument = 3, kInternal = 13 };

struct Context;
struct Error;

// Structs say their size, of which a newer runtime may have more than is known here.
struct Extension {
  std::size_t struct_size;
  ExtensionType type;
  Extension* next;
};
struct Header {
  std::size_t struct_size;
  Extension* extensions;
};

struct Version {
  Header header;
  int major_version;
  int minor_version;
};
struct Metadata {
  std::size_t struct_size;
  Version api_version;
  std::uint32_t traits;
};
struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

// What a call takes and gives.
struct Buffer {
  Header header;
  DataType dtype;
  void* data;
  std::int64_t rank;
  std::int64_t* dims;
};
struct Buffers {
  Header header;
  std::int64_t size;
  std::int32_t* types;  // all of them buffers
  Buffer** values;
};

// Text has no null at its end.
struct Text {
  const char* data;
  std::size_t size;
};
struct Scalar {
  DataType dtype;
  void* value;
};
struct Array {
  DataType dtype;
  std::size_t size;
  void* data;
};
struct Attributes {
  Header header;
  std::int64_t size;
  AttributeType* types;
  Text** names;
  void** values;
};

struct ErrorArguments {
  Header header;
  const char* message;
  ErrorCode code;
};
struct DestroyArguments {
  Header header;
  Error* error;
};
struct StreamArguments {
  Header header;
  Context* context;
  void* stream;  // cudaStream_t
};
struct OrdinalArguments {
  Header header;
  Context* context;
  std::int32_t ordinal;
};

// What the runtime offers.
struct Api {
  Header header;
  Version version;
  const void* internal;
  Error* (*create_error)(ErrorArguments*);
  void* message_of_error;
  void (*destroy_error)(DestroyArguments*);
  void* register_handler;
  Error* (*get_stream)(StreamArguments*);
  void* others[12];
  Error* (*get_device_ordinal)(OrdinalArguments*);
};

struct CallFrame {
  Header header;
  const Api* api;
  Context* context;
  Stage stage;
  Buffers arguments;
  Buffers results;
  Attributes attributes;
};

// Errors are the runtime's to delete.
using Handler = Error* (*)(CallFrame*);

}  // namespace normcore::python::jax::ffi
