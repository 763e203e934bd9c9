# Checks the symbols of a kernel object: cmake -DNM=... -DOBJECT=... -P nm_test.cmake. Kernels of
# different instruction sets live in one program. A global or weak function in two of their objects
# may be taken from the wrong one, and an initialiser runs on a CPU that may lack its instructions.
# So: one global symbol, kTable; nothing weak or unique; no initialiser.
execute_process(COMMAND ${NM} ${OBJECT} OUTPUT_VARIABLE symbols RESULT_VARIABLE failed)
if(failed OR symbols STREQUAL "")
  message(FATAL_ERROR "${NM} ${OBJECT} failed")
endif()
string(REPLACE "\n" ";" symbols "${symbols}")

set(globals)
set(faults)
foreach(symbol IN LISTS symbols)
  if(symbol MATCHES "(_GLOBAL__sub_I|__cxx_global_var_init|_GLOBAL__I_)")
    list(APPEND faults "fault: initialiser ${symbol}")
  elseif(symbol MATCHES " [WVuw] ")
    list(APPEND faults "fault: weak ${symbol}")
  elseif(symbol MATCHES " [ABCDGRST] ([^ ]+)$")
    list(APPEND globals ${CMAKE_MATCH_1})
  endif()
endforeach()
list(LENGTH globals count)
if(NOT count EQUAL 1 OR NOT globals MATCHES "6kTableE$")
  list(APPEND faults "fault: global symbols are [${globals}], expected kTable alone")
endif()

if(faults)
  list(JOIN faults "\n  " text)
  message(FATAL_ERROR "${OBJECT}\n  ${text}")
endif()
message(STATUS "one global symbol: ${globals}")
