// Reaches an op through the dispatcher alone: the linker must not have dropped liboctet.
#include <ATen/core/dispatch/Dispatcher.h>

int main() { return c10::Dispatcher::singleton().findSchema({"octet::fake_quantize_per_tensor", ""}) ? 0 : 1; }
