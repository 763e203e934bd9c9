# What the C++ examples share: safetensors files, and matrix products by a BLAS where there is one.
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

find_package(nlohmann_json 3 REQUIRED)
find_package(BLAS)
include(CheckCXXCompilerFlag)
include(CheckCXXSymbolExists)

set(folder ${CMAKE_CURRENT_LIST_DIR})
add_library(example_common STATIC ${folder}/matmul.cc ${folder}/safetensors.cc)
target_compile_features(example_common PUBLIC cxx_std_20)
target_compile_options(example_common PRIVATE -Wall -Wextra)
target_include_directories(example_common PUBLIC ${folder})
target_link_libraries(example_common PUBLIC nlohmann_json::nlohmann_json)

if(BLAS_FOUND)
  set(CMAKE_REQUIRED_LIBRARIES BLAS::BLAS)
  check_cxx_symbol_exists(cblas_sgemm cblas.h HAVE_CBLAS)
  check_cxx_symbol_exists(openblas_set_num_threads cblas.h HAVE_OPENBLAS_THREADS)
  unset(CMAKE_REQUIRED_LIBRARIES)
endif()
if(HAVE_CBLAS)
  target_link_libraries(example_common PRIVATE BLAS::BLAS)
  target_compile_definitions(example_common PRIVATE
    HAVE_CBLAS $<$<BOOL:${HAVE_OPENBLAS_THREADS}>:HAVE_OPENBLAS_THREADS>)
else()
  message(STATUS "No BLAS with cblas.h: matrix products by plain loops, several times slower")
endif()

# vectorize(FILE...): for loops that the compiler can turn into vector code for this machine, sums
# and the functions of <cmath> included. It may then order sums as it likes.
check_cxx_compiler_flag(-march=native HAVE_MARCH_NATIVE)
function(vectorize)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS
    "-O3;-ffast-math;$<$<BOOL:${HAVE_MARCH_NATIVE}>:-march=native>")
endfunction()
vectorize(${folder}/matmul.cc)
