// Copies of rows from all over a large array: what batches are made of.

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

// So far ahead of what is copied memory is asked for the rest of a row and, near its end, for the next one: rows are
// from all over, and the hardware knows only what lies in a row. Into the second-level cache, as the first level waits
// for a few lines at once only.
constexpr int64_t kAhead = 8192;

// What a thread takes at once of what is to be copied.
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
// Past the caches: nobody reads it soon, and no line is loaded to be overwritten. By whole lines; in halves or quarters
// it takes longer than `copy` where reading has to wait.
[[gnu::target("avx512f")]] void stream(uint8_t* to, const uint8_t* row, int64_t bytes, const uint8_t* next) {
  for (int64_t at = 0; at < bytes; at += kLine) {
    fetch(row, bytes, next, at);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + at), _mm512_loadu_si512(row + at));
  }
}
#endif

// What copies rows of so many bytes that lie one behind the other from here on.
auto way(const uint8_t* to, int64_t bytes) {
#if defined(__x86_64__)
  const bool is_of_lines = reinterpret_cast<uintptr_t>(to) % kLine == 0 && bytes % kLine == 0;
  if (is_of_lines && __builtin_cpu_supports("avx512f")) return stream;
#endif
  return copy;
}

// Has others see what was written, past the caches too.
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

// Rows to be copied, some at a time, by whatever threads come.
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

// Threads that help with jobs. One that wakes too late finds nothing left, and nobody waits for it.
class Helpers {
 public:
  // They live as long as the process.
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

// to[to_rows[i]] = from[from_rows[i]] for i < count, on up to so many threads. Returns 0; or 1, with nothing done, if
// there is no such row among the num_from and num_to that there are.
int jaxdp_copy_rows(const uint8_t* from, int64_t num_from, const int64_t* from_rows, uint8_t* to, int64_t num_to,
                    const int64_t* to_rows, int64_t count, int64_t row_bytes, int threads) {
  const auto outside = [count](const int64_t* rows, int64_t limit) {
    return std::any_of(rows, rows + count, [limit](int64_t row) { return row < 0 || row >= limit; });
  };
  if (outside(from_rows, num_from) || outside(to_rows, num_to)) return 1;
  const int64_t at_once = std::max<int64_t>(1, kBlockBytes / std::max<int64_t>(1, row_bytes));
  const auto job = std::make_shared<Job>(Rows{from, from_rows, to, to_rows, count, row_bytes, at_once});
  const int64_t blocks = (count + at_once - 1) / at_once;
  // A helper wakes in about the time of two blocks.
  if (const auto others = std::min<int64_t>(threads - 1, blocks / 4); others > 0) Helpers::all().call(job, others);
  job->help();
  while (job->copied.load(std::memory_order_acquire) < count) std::this_thread::yield();
  return 0;
}
}
#pragma GCC visibility pop
