// Everything: ops, modules, conversion. Programs in a hurry to compile include what they use instead.
#pragma once

#include "octet/convert/sequential.h"
#include "octet/nn/elementwise.h"
#include "octet/nn/fake_quantize.h"
#include "octet/nn/int8.h"
#include "octet/nn/layers.h"
#include "octet/ops/blocks.h"
#include "octet/ops/commit_ranges.h"
#include "octet/ops/fake_quantize.h"
#include "octet/ops/fold.h"
#include "octet/ops/int8_conv.h"
#include "octet/ops/int8_elementwise.h"
#include "octet/ops/int8_pool.h"
#include "octet/ops/observe.h"
#include "octet/ops/quantize.h"
#include "octet/version.h"
