// Compares the declarations of cpp/python/jax/ffi.h with jaxlib's own header; compiles where they
// agree. tests/test_jax_layout.py compiles it.
#include <cstddef>

#include "python/jax/ffi.h"
#include "xla/ffi/api/c_api.h"

namespace ffi = normcore::python::jax::ffi;

// The place and size of a member.
#define SAME(Ours, our_member, Theirs, their_member)                               \
  static_assert(offsetof(ffi::Ours, our_member) == offsetof(Theirs, their_member), \
                #Ours "::" #our_member " stands elsewhere");                       \
  static_assert(sizeof(ffi::Ours::our_member) == sizeof(Theirs::their_member),     \
                #Ours "::" #our_member " has another size")
#define SAME_HEADER(Ours, Theirs)                                                             \
  static_assert(offsetof(Theirs, struct_size) == offsetof(ffi::Header, struct_size) &&        \
                    offsetof(Theirs, extension_start) == offsetof(ffi::Header, extensions) && \
                    offsetof(ffi::Ours, header) == 0,                                         \
                #Ours " begins otherwise")
#define SAME_VALUE(ours, theirs)                                               \
  static_assert(static_cast<int>(ffi::ours) == static_cast<int>(theirs), #ours \
                " is another "                                                 \
                "number")

SAME(Extension, struct_size, XLA_FFI_Extension_Base, struct_size);
SAME(Extension, type, XLA_FFI_Extension_Base, type);
SAME(Extension, next, XLA_FFI_Extension_Base, next);

SAME_HEADER(Version, XLA_FFI_Api_Version);
SAME(Version, major_version, XLA_FFI_Api_Version, major_version);
SAME(Version, minor_version, XLA_FFI_Api_Version, minor_version);
static_assert(sizeof(ffi::Version) == sizeof(XLA_FFI_Api_Version));

SAME(Metadata, struct_size, XLA_FFI_Metadata, struct_size);
SAME(Metadata, api_version, XLA_FFI_Metadata, api_version);
SAME(Metadata, traits, XLA_FFI_Metadata, traits);
SAME(MetadataExtension, base, XLA_FFI_Metadata_Extension, extension_base);
SAME(MetadataExtension, metadata, XLA_FFI_Metadata_Extension, metadata);

SAME_HEADER(Buffer, XLA_FFI_Buffer);
SAME(Buffer, dtype, XLA_FFI_Buffer, dtype);
SAME(Buffer, data, XLA_FFI_Buffer, data);
SAME(Buffer, rank, XLA_FFI_Buffer, rank);
SAME(Buffer, dims, XLA_FFI_Buffer, dims);
static_assert(sizeof(ffi::Buffer) <= XLA_FFI_Buffer_STRUCT_SIZE);

SAME_HEADER(Buffers, XLA_FFI_Args);
SAME(Buffers, size, XLA_FFI_Args, size);
SAME(Buffers, types, XLA_FFI_Args, types);
SAME(Buffers, values, XLA_FFI_Args, args);
SAME_HEADER(Buffers, XLA_FFI_Rets);
SAME(Buffers, size, XLA_FFI_Rets, size);
SAME(Buffers, types, XLA_FFI_Rets, types);
SAME(Buffers, values, XLA_FFI_Rets, rets);
static_assert(sizeof(ffi::Buffers) == sizeof(XLA_FFI_Args));
static_assert(sizeof(ffi::Buffers) == sizeof(XLA_FFI_Rets));

SAME(Text, data, XLA_FFI_ByteSpan, ptr);
SAME(Text, size, XLA_FFI_ByteSpan, len);
SAME(Scalar, dtype, XLA_FFI_Scalar, dtype);
SAME(Scalar, value, XLA_FFI_Scalar, value);
SAME(Array, dtype, XLA_FFI_Array, dtype);
SAME(Array, size, XLA_FFI_Array, size);
SAME(Array, data, XLA_FFI_Array, data);
SAME_HEADER(Attributes, XLA_FFI_Attrs);
SAME(Attributes, size, XLA_FFI_Attrs, size);
SAME(Attributes, types, XLA_FFI_Attrs, types);
SAME(Attributes, names, XLA_FFI_Attrs, names);
SAME(Attributes, values, XLA_FFI_Attrs, attrs);
static_assert(sizeof(ffi::Attributes) == sizeof(XLA_FFI_Attrs));

SAME_HEADER(ErrorArguments, XLA_FFI_Error_Create_Args);
SAME(ErrorArguments, message, XLA_FFI_Error_Create_Args, message);
SAME(ErrorArguments, code, XLA_FFI_Error_Create_Args, errc);
SAME_HEADER(DestroyArguments, XLA_FFI_Error_Destroy_Args);
SAME(DestroyArguments, error, XLA_FFI_Error_Destroy_Args, error);
SAME_HEADER(StreamArguments, XLA_FFI_Stream_Get_Args);
SAME(StreamArguments, context, XLA_FFI_Stream_Get_Args, ctx);
SAME(StreamArguments, stream, XLA_FFI_Stream_Get_Args, stream);
SAME_HEADER(OrdinalArguments, XLA_FFI_DeviceOrdinal_Get_Args);
SAME(OrdinalArguments, context, XLA_FFI_DeviceOrdinal_Get_Args, ctx);
SAME(OrdinalArguments, ordinal, XLA_FFI_DeviceOrdinal_Get_Args, device_ordinal);

SAME_HEADER(Api, XLA_FFI_Api);
SAME(Api, version, XLA_FFI_Api, api_version);
SAME(Api, create_error, XLA_FFI_Api, XLA_FFI_Error_Create);
SAME(Api, destroy_error, XLA_FFI_Api, XLA_FFI_Error_Destroy);
SAME(Api, get_stream, XLA_FFI_Api, XLA_FFI_Stream_Get);
SAME(Api, get_device_ordinal, XLA_FFI_Api, XLA_FFI_DeviceOrdinal_Get);

SAME_HEADER(CallFrame, XLA_FFI_CallFrame);
SAME(CallFrame, api, XLA_FFI_CallFrame, api);
SAME(CallFrame, context, XLA_FFI_CallFrame, ctx);
SAME(CallFrame, stage, XLA_FFI_CallFrame, stage);
SAME(CallFrame, arguments, XLA_FFI_CallFrame, args);
SAME(CallFrame, results, XLA_FFI_CallFrame, rets);
SAME(CallFrame, attributes, XLA_FFI_CallFrame, attrs);
static_assert(sizeof(ffi::CallFrame) <= XLA_FFI_CallFrame_STRUCT_SIZE);

SAME_VALUE(kBool, XLA_FFI_DataType_PRED);
SAME_VALUE(kInt64, XLA_FFI_DataType_S64);
SAME_VALUE(kUint32, XLA_FFI_DataType_U32);
SAME_VALUE(kFloat16, XLA_FFI_DataType_F16);
SAME_VALUE(kFloat32, XLA_FFI_DataType_F32);
SAME_VALUE(kFloat64, XLA_FFI_DataType_F64);
SAME_VALUE(kBFloat16, XLA_FFI_DataType_BF16);
SAME_VALUE(kMetadata, XLA_FFI_Extension_Metadata);
SAME_VALUE(kArray, XLA_FFI_AttrType_ARRAY);
SAME_VALUE(kScalar, XLA_FFI_AttrType_SCALAR);
SAME_VALUE(kExecute, XLA_FFI_ExecutionStage_EXECUTE);
SAME_VALUE(kInvalidArgument, XLA_FFI_Error_Code_INVALID_ARGUMENT);
SAME_VALUE(kInternal, XLA_FFI_Error_Code_INTERNAL);

static_assert(ffi::kMajorVersion == XLA_FFI_API_MAJOR && ffi::kMinorVersion <= XLA_FFI_API_MINOR);
