# Builds and tests a consumer (see CMakeLists.txt). WAY find_package and pkg_config install the
# library into an empty prefix first, WAY add_subdirectory hands over the source folder.
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE failed)
  if(failed)
    list(JOIN ARGV " " command)
    message(FATAL_ERROR "failed: ${command}")
  endif()
endfunction()

file(REMOVE_RECURSE ${WORK})
set(prefix ${WORK}/prefix)
if(NOT WAY STREQUAL add_subdirectory)
  run(${CMAKE_COMMAND} --install ${NORMCORE_BUILD} --prefix ${prefix} --config ${CONFIG}
    --component development)
endif()

if(WAY STREQUAL pkg_config)
  # A C program by the C compiler alone.
  file(GLOB_RECURSE pc ${prefix}/normcore.pc)
  get_filename_component(folder "${pc}" DIRECTORY)
  set(ENV{PKG_CONFIG_PATH} ${folder})
  execute_process(COMMAND ${PKG_CONFIG} --cflags --libs normcore
    OUTPUT_VARIABLE options OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "pkg-config does not find normcore in ${folder}")
  endif()
  separate_arguments(options UNIX_COMMAND "${options}")
  get_filename_component(library_folder ${folder} DIRECTORY)
  set(ENV{LD_LIBRARY_PATH} "${library_folder}:$ENV{LD_LIBRARY_PATH}")
  separate_arguments(flags UNIX_COMMAND "${C_FLAGS}${SANITIZERS}")
  run(${CC} ${flags} ${CONSUMERS}/find_package/main.c -o ${WORK}/consumer ${options} -lm)
  run(${WORK}/consumer)
  return()
endif()

set(options -G ${GENERATOR} -DCMAKE_C_COMPILER=${CC} -DCMAKE_CXX_COMPILER=${CXX}
  -DCMAKE_BUILD_TYPE=${CONFIG})
if(WAY STREQUAL find_package)
  list(APPEND options -DCMAKE_PREFIX_PATH=${prefix}
    "-DCMAKE_C_FLAGS=${C_FLAGS}${SANITIZERS}" "-DCMAKE_CXX_FLAGS=${CXX_FLAGS}${SANITIZERS}")
else()
  # The portable kernels: one source to compile instead of one per instruction set.
  list(APPEND options -DNORMCORE_SOURCE=${NORMCORE_SOURCE} -DNORMCORE_GENERIC=ON
    -DNORMCORE_WERROR=${WERROR} -DBUILD_SHARED_LIBS=${SHARED} "-DCMAKE_C_FLAGS=${C_FLAGS}" "-DCMAKE_CXX_FLAGS=${CXX_FLAGS}")
endif()
run(${CMAKE_COMMAND} -S ${CONSUMERS}/${WAY} -B ${WORK}/build ${options})
run(${CMAKE_COMMAND} --build ${WORK}/build --config ${CONFIG})
run(${CMAKE_CTEST_COMMAND} --test-dir ${WORK}/build -C ${CONFIG} --output-on-failure
  --no-tests=error)
