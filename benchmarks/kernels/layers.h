// The convolutions of known networks, batch 1.
#pragma once

#include <string_view>
#include <vector>

struct Layer {
  std::string_view name;
  int in, out, size, kernel, stride, groups, rows;  // rows: the batch, more than 1 for linear layers
};

inline const std::vector<Layer> kLayers{
    {"ResNet stem 3-64 7x7 s2 @224", 3, 64, 224, 7, 2, 1, 1},
    {"ResNet 64-64 3x3 @56", 64, 64, 56, 3, 1, 1, 1},
    {"ResNet 128-128 3x3 @28", 128, 128, 28, 3, 1, 1, 1},
    {"ResNet 256-256 3x3 @14", 256, 256, 14, 3, 1, 1, 1},
    {"ResNet 512-512 3x3 @7", 512, 512, 7, 3, 1, 1, 1},
    {"ResNet 64-128 1x1 s2 @56", 64, 128, 56, 1, 2, 1, 1},
    {"MobileNet stem 3-32 3x3 s2 @224", 3, 32, 224, 3, 2, 1, 1},
    {"MobileNet 16-96 1x1 @112", 16, 96, 112, 1, 1, 1, 1},
    {"MobileNet 96 depthwise s2 @112", 96, 96, 112, 3, 2, 96, 1},
    {"MobileNet 144-24 1x1 @56", 144, 24, 56, 1, 1, 1, 1},
    {"MobileNet 144 depthwise @56", 144, 144, 56, 3, 1, 144, 1},
    {"MobileNet 384 depthwise @14", 384, 384, 14, 3, 1, 384, 1},
    {"MobileNet 160-960 1x1 @7", 160, 960, 7, 1, 1, 1, 1},
    {"CIFAR 3-16 3x3 @32", 3, 16, 32, 3, 1, 1, 1},
    {"CIFAR 16-16 3x3 @32", 16, 16, 32, 3, 1, 1, 1},
    {"CIFAR 32-32 3x3 @16", 32, 32, 16, 3, 1, 1, 1},
    {"CIFAR 64-64 3x3 @8", 64, 64, 8, 3, 1, 1, 1},
    {"linear 512-1000, 1 row", 512, 1000, 1, 1, 1, 1, 1},
    {"linear 384-1536, 64 rows", 384, 1536, 1, 1, 1, 1, 64},
};
