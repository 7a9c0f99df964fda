// Copies rows from anywhere in a large array, to assemble batches.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kLine = 64;

// How many bytes ahead to prefetch: the rest of a row and, near its end, the next row. Rows come from anywhere in
// memory, and hardware prefetching only works within a row. The second-level cache is the target, because the first
// level can wait for only a few lines at once.
constexpr int64_t kAhead = 8192;

// How much a thread takes at once of the data to copy.
constexpr int64_t kBlockBytes = int64_t{1} << 18;

[[gnu::always_inline]] inline void fetch(const uint8_t* row, int64_t bytes, const uint8_t* next, int64_t at) {
  const int64_t ahead = std::min(kAhead, bytes);
  __builtin_prefetch(at + ahead < bytes ? row + at + ahead : next + at + ahead - bytes, 0, 2);
}

void copy(uint8_t* to, const uint8_t* row, int64_t bytes, const uint8_t* next) {
  int64_t at = 0;
  for (; at + kLine <= bytes; at += kLine) {
    fetch(row, bytes, next, at);
    std::memcpy(to + at, row + at, kLine);
  }
  std::memcpy(to + at, row + at, bytes - at);
}

#if defined(__x86_64__)
// Writes past the caches: the data is not read soon, and no line is loaded only to be overwritten. Writes whole lines;
// writing halves or quarters is slower than `copy` when reads have to wait.
[[gnu::target("avx512f")]] void stream(uint8_t* to, const uint8_t* row, int64_t bytes, const uint8_t* next) {
  for (int64_t at = 0; at < bytes; at += kLine) {
    fetch(row, bytes, next, at);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + at), _mm512_loadu_si512(row + at));
  }
}
#endif

// Returns the function that copies contiguous rows of `bytes` bytes to addresses from `to` on.
auto way(const uint8_t* to, int64_t bytes) {
#if defined(__x86_64__)
  const bool is_of_lines = reinterpret_cast<uintptr_t>(to) % kLine == 0 && bytes % kLine == 0;
  if (is_of_lines && __builtin_cpu_supports("avx512f")) return stream;
#endif
  return copy;
}

// Makes all writes visible to other threads, including those past the caches.
void settle() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

struct Rows {
  const uint8_t* from;
  const int64_t* from_rows;
  uint8_t* to;
  const int64_t* to_rows;
  int64_t count;
  int64_t row_bytes;
  int64_t at_once;
};

// Rows to copy, a few at a time, by all threads that call `help`.
struct Job : Rows {
  explicit Job(const Rows& rows) : Rows(rows) {}

  std::atomic<int64_t> taken{0};
  std::atomic<int64_t> copied{0};

  void help() {
    const auto move = way(to, row_bytes);
    for (int64_t first; (first = taken.fetch_add(at_once)) < count;) {
      const int64_t end = std::min(first + at_once, count);
      for (int64_t row = first; row < end; ++row) {
        const int64_t next = from_rows[std::min(row + 1, end - 1)];
        move(to + to_rows[row] * row_bytes, from + from_rows[row] * row_bytes, row_bytes, from + next * row_bytes);
      }
      settle();
      copied.fetch_add(end - first, std::memory_order_release);
    }
  }
};

// Threads that help with jobs. A thread that wakes too late finds nothing left to do, and no other thread waits for it.
class Helpers {
 public:
  // The threads live as long as the process.
  static Helpers& all() {
    static auto* helpers = new Helpers;
    return *helpers;
  }

  void call(const std::shared_ptr<Job>& job, int how_many) {
    std::lock_guard lock(mutex_);
    for (; num_threads_ < how_many; ++num_threads_) std::thread([this] { serve(); }).detach();
    for (int helper = 0; helper < how_many; ++helper) jobs_.push_back(job);
    wake_.notify_all();
  }

 private:
  void serve() {
    while (true) {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return !jobs_.empty(); });
      const std::shared_ptr<Job> job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job->help();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Job>> jobs_;
  int num_threads_ = 0;
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// to[to_rows[i]] = from[from_rows[i]] for i < count, on at most `threads` threads. Returns 0; or 1, with nothing done,
// if a row is outside the num_from rows of `from` or the num_to rows of `to`.
int jaxdp_copy_rows(const uint8_t* from, int64_t num_from, const int64_t* from_rows, uint8_t* to, int64_t num_to,
                    const int64_t* to_rows, int64_t count, int64_t row_bytes, int threads) {
  const auto outside = [count](const int64_t* rows, int64_t limit) {
    return std::any_of(rows, rows + count, [limit](int64_t row) { return row < 0 || row >= limit; });
  };
  if (outside(from_rows, num_from) || outside(to_rows, num_to)) return 1;
  const int64_t at_once = std::max<int64_t>(1, kBlockBytes / std::max<int64_t>(1, row_bytes));
  const auto job = std::make_shared<Job>(Rows{from, from_rows, to, to_rows, count, row_bytes, at_once});
  const int64_t blocks = (count + at_once - 1) / at_once;
  // Waking a helper takes about as long as copying two blocks.
  if (const auto others = std::min<int64_t>(threads - 1, blocks / 4); others > 0) Helpers::all().call(job, others);
  job->help();
  while (job->copied.load(std::memory_order_acquire) < count) std::this_thread::yield();
  return 0;
}
}
#pragma GCC visibility pop
