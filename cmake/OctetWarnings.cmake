# Warnings for our own targets; errors where OCTET_WERROR is on. Also applies OCTET_SANITIZE.
function(octet_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wno-unused-parameter $<$<BOOL:${OCTET_WERROR}>:-Werror>)
endfunction()

if(OCTET_SANITIZE)
  add_compile_options(-fsanitize=${OCTET_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${OCTET_SANITIZE})
endif()
