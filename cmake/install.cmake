# Installs the C++ library, its headers, and what find_package and pkg-config read: the component
# `development`. In the Python wheel it lies in the package, without pkg-config.
include(CMakePackageConfigHelpers)

set(cmake_files ${CMAKE_INSTALL_LIBDIR}/cmake/normcore)
set(namelink NAMELINK_COMPONENT development)
if(SKBUILD)
  set(namelink NAMELINK_SKIP)
endif()
install(TARGETS normcore EXPORT normcore-targets COMPONENT development
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ${namelink}
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY cpp/include/normcore DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  COMPONENT development)
install(EXPORT normcore-targets NAMESPACE normcore:: COMPONENT development
  DESTINATION ${cmake_files})

get_target_property(type normcore TYPE)
string(COMPARE EQUAL "${type}" STATIC_LIBRARY NORMCORE_STATIC)
configure_package_config_file(cmake/normcore-config.cmake.in normcore-config.cmake
  INSTALL_DESTINATION ${cmake_files})
# Below 1.0 a minor version may change the interface.
write_basic_package_version_file(normcore-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  ${CMAKE_CURRENT_BINARY_DIR}/normcore-config.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/normcore-config-version.cmake
  COMPONENT development DESTINATION ${cmake_files})

if(SKBUILD)  # pkg-config looks for the link that wheels cannot hold
  return()
endif()

# ---- pkg-config. Whoever links the static library links what it needs, the C++ runtime too.
set(dependencies)
if(NORMCORE_STATIC)
  list(APPEND dependencies ${CMAKE_THREAD_LIBS_INIT})
  list(TRANSFORM CMAKE_DL_LIBS PREPEND -l OUTPUT_VARIABLE dl)
  list(APPEND dependencies ${dl})
  if(NORMCORE_CUDA)
    list(APPEND dependencies -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -ldl -lrt -lpthread)
  endif()
  foreach(runtime stdc++ c++ m)
    if(runtime IN_LIST CMAKE_CXX_IMPLICIT_LINK_LIBRARIES)
      list(APPEND dependencies -l${runtime})
    endif()
  endforeach()
endif()
list(JOIN dependencies " " dependencies)
set(pc_files ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
# From the folder of the file to the prefix, which may be moved.
file(RELATIVE_PATH pc_to_prefix
  ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" pc_to_prefix "${pc_to_prefix}")
foreach(folder LIBDIR INCLUDEDIR)
  string(TOLOWER pc_${folder} name)
  set(${name} ${CMAKE_INSTALL_${folder}})
  if(NOT IS_ABSOLUTE "${${name}}")
    string(PREPEND ${name} "\${prefix}/")
  endif()
endforeach()
configure_file(cmake/normcore.pc.in normcore.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/normcore.pc COMPONENT development
  DESTINATION ${pc_files})
