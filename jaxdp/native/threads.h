// Shares work of XLA programs on CPUs among the threads of XLA's pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace jaxdp {

// Calls `work` with each of 0, ..., parts - 1, on this thread and on pool threads that arrive while parts are left.
template <typename Work>
void share(xla::ffi::ThreadPool& pool, int64_t parts, const Work& work) {
  struct Table {
    const Work& work;
    const int64_t parts;
    std::atomic<int64_t> next = 0;
    std::mutex mutex;
    std::condition_variable done;
    int64_t left;

    Table(const Work& work, int64_t parts) : work(work), parts(parts), left(parts) {}

    void take() {
      for (int64_t part; (part = next++) < parts;) {
        work(part);
        std::lock_guard lock(mutex);
        if (--left == 0) done.notify_one();
      }
    }

    void wait() {
      std::unique_lock lock(mutex);
      done.wait(lock, [this] { return left == 0; });
    }
  };

  // A late worker finds no work left and touches nothing else of this call.
  const auto table = std::make_shared<Table>(work, parts);
  const int64_t helpers = std::min(pool.num_threads(), parts) - 1;
  for (int64_t number = 0; number < helpers; ++number) pool.Schedule([table] { table->take(); });
  table->take();
  table->wait();
}

}  // namespace jaxdp
