# The shared library exports its interface and nothing else: C functions by their prefix, and C++
# functions and types of the namespace normcore itself, not those of its insides.
execute_process(COMMAND ${NM} -D --defined-only --demangle ${LIBRARY}
  OUTPUT_VARIABLE listing RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "nm failed on ${LIBRARY}")
endif()
string(REPLACE ";" "," listing "${listing}")
string(REGEX MATCHALL "[^\n]+" lines "${listing}")
set(strays)
set(found)
foreach(line IN LISTS lines)
  string(REGEX REPLACE "^[0-9a-f]* *[A-Za-z] " "" symbol "${line}")
  if(symbol MATCHES "^normcore_[a-z0-9_]+$"
      OR symbol MATCHES "^normcore::(cuda::)?[a-z0-9_]+(\\[abi:cxx11\\])?\\("
      OR symbol MATCHES "^(typeinfo|typeinfo name|vtable) for normcore::[A-Za-z_]+$")
    list(APPEND found "${symbol}")
  else()
    list(APPEND strays "${symbol}")
  endif()
endforeach()
list(LENGTH found count)
if(strays)
  list(JOIN strays "\n  " text)
  message(FATAL_ERROR "exported, and no part of the interface:\n  ${text}")
elseif(NOT "normcore_layer_norm" IN_LIST found)
  message(FATAL_ERROR "normcore_layer_norm is not exported, among ${count} symbols")
endif()
message(STATUS "${count} symbols, all of the interface")
