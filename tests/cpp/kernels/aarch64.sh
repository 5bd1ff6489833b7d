#!/bin/sh
# Builds the kernels and their tests for aarch64 and runs them in an emulator: needs aarch64-linux-gnu-g++, qemu-aarch64 and the
# sources of GoogleTest (on Debian: g++-aarch64-linux-gnu qemu-user libgtest-dev). Says what is missing, and fails then.
# Usage: aarch64.sh BUILD_FOLDER, from the repository root
set -eu

build=$1
compiler=${AARCH64_CXX:-aarch64-linux-gnu-g++}
emulator=${AARCH64_EMULATOR:-qemu-aarch64}
googletest=${GTEST_SOURCE:-/usr/src/googletest/googletest}
for tool in "$compiler" "$emulator"; do
  command -v "$tool" > /dev/null || { echo "aarch64.sh: $tool is missing"; exit 1; }
done
[ -f "$googletest/src/gtest-all.cc" ] || { echo "aarch64.sh: no GoogleTest sources in $googletest"; exit 1; }

mkdir -p "$build"
# -O1 for the tests themselves, which are slow to compile; the kernels as they are shipped.
"$compiler" -std=c++20 -O1 -I"$googletest" -I"$googletest/include" -c "$googletest/src/gtest-all.cc" -o "$build/gtest.o"
"$compiler" -std=c++20 -O1 -I"$googletest/include" -Icsrc -c tests/cpp/kernels/kernels_test.cpp -o "$build/kernels_test.o"
for source in conv dispatch elementwise generic neondot pool training training_generic; do
  "$compiler" -std=c++20 -O3 -ffp-contract=off -DOCTET_NEON -Icsrc -c csrc/octet/kernels/$source.cpp -o "$build/$source.o"
done
"$compiler" -I"$googletest/include" "$googletest/src/gtest_main.cc" "$build"/*.o -static -lpthread -o "$build/kernels_test"
"$emulator" -cpu max "$build/kernels_test" --gtest_brief=1
