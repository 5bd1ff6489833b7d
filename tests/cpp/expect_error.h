// EXPECT_ERROR(statement, text): the statement throws a c10::Error whose message contains text.
#pragma once

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <string>

template <class Function>
std::string error_of(Function function) {
  try {
    function();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

#define EXPECT_ERROR(statement, text)                                                   \
  do {                                                                                  \
    const std::string message = error_of([&] { statement; });                           \
    EXPECT_NE(message.find(text), std::string::npos) << "the message was: " << message; \
  } while (false)
