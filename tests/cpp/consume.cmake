# Builds and tests a consumer project (see CMakeLists.txt): WAY find_package installs the library
# into an empty prefix first, WAY add_subdirectory hands over the source folder.
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE failed)
  if(failed)
    list(JOIN ARGV " " command)
    message(FATAL_ERROR "failed: ${command}")
  endif()
endfunction()

file(REMOVE_RECURSE ${WORK})
set(options -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${CXX} "-DCMAKE_CXX_FLAGS=${FLAGS}"
  -DCMAKE_BUILD_TYPE=${CONFIG})
if(WAY STREQUAL "find_package")
  run(${CMAKE_COMMAND} --install ${NORMCORE_BUILD} --prefix ${WORK}/prefix --config ${CONFIG}
    --component development)
  list(APPEND options -DCMAKE_PREFIX_PATH=${WORK}/prefix)
else()
  # The portable kernels: one source to compile instead of one per instruction set.
  list(APPEND options -DNORMCORE_SOURCE=${NORMCORE_SOURCE} -DNORMCORE_GENERIC=ON
    -DBUILD_SHARED_LIBS=${SHARED})
endif()
run(${CMAKE_COMMAND} -S ${CONSUMER} -B ${WORK}/build ${options})
run(${CMAKE_COMMAND} --build ${WORK}/build --config ${CONFIG})
run(${CMAKE_CTEST_COMMAND} --test-dir ${WORK}/build -C ${CONFIG} --output-on-failure
  --no-tests=error)
