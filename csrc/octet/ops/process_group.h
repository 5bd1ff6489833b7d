// Batches spread over processes: batch norm over all of them, as torch's SyncBatchNorm means it. Groups are named as
// c10d registers them (Python's ProcessGroup.group_name); the empty name stands for this process alone. Not a public
// header.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>

namespace octet::detail {

// The sum over the processes of `group`, the same bits on each of them. Waits until all have come.
at::Tensor sum_over_processes(const at::Tensor& t, std::string_view group);

struct Moments {
  at::Tensor mean, var;  // [C]; var is biased
  at::Tensor count;      // int64 []: values per channel
};

// The statistics of all processes' batches from those of this one, `count` values per channel. `op` is for errors.
Moments join_moments(const char* op, const Moments& own, std::string_view group);

struct SyncedNorm {
  at::Tensor y, mean, var, count;
};

// Batch norm over the batches of all processes by plain ATen: any device, float32 or float64. Gradients of gamma and
// beta are this process's part of the sum, as torch's SyncBatchNorm gives them to DistributedDataParallel.
SyncedNorm synced_batch_norm(const char* op, const at::Tensor& x, const std::optional<at::Tensor>& gamma,
                             const std::optional<at::Tensor>& beta, double eps, std::string_view group);

}  // namespace octet::detail
