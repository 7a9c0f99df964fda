// Stress test for sanitizers: starts many concurrent allreduces again and again, from two threads and in a different
// order on each rank. The plans are rings, stars and MPI's own allreduce. The payloads are whole numbers, so every
// order of additions gives the same sums. Run under mpirun.

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "../../jaxdp/native/engine.h"

namespace {

using jaxdp::Plan;

Plan ring(int rank, int size, int64_t count, int64_t segment) {
  Plan plan{"a ring", jaxdp::find_arithmetic("float32"), count, {}, {}, 8};
  for (int chunk = 0; chunk < size; ++chunk) {
    std::vector<Plan::Round> rounds;
    for (int step = 0; step < 2 * (size - 1); ++step) {
      const int from = (chunk + step) % size, to = (from + 1) % size;
      const bool reduces = step < size - 1;
      if (rank == from) rounds.push_back({{to, true, reduces}});
      if (rank == to) rounds.push_back({{from, false, reduces}});
    }
    plan.chunks.push_back(rounds);
  }
  for (int64_t start = 0; start < count; start += segment) {
    const int chunk = static_cast<int>(start / segment % size);
    plan.pieces.push_back({chunk, start, std::min(segment, count - start)});
  }
  return plan;
}

Plan star(int rank, int size, int64_t count, const char* wire) {
  Plan plan{"a star", jaxdp::find_arithmetic(wire), count, {{}}, {{0, 0, count}}, 8};
  Plan::Round up, down;
  for (int peer = 1; peer < size; ++peer) {
    if (rank == 0) up.push_back({peer, false, true});
    if (rank == peer) up.push_back({0, true, true});
    if (rank == 0) down.push_back({peer, true, false});
    if (rank == peer) down.push_back({0, false, false});
  }
  if (size > 1) plan.chunks[0] = {up, down};
  return plan;
}

Plan by_mpi(int64_t count) {
  return {"by MPI", jaxdp::find_arithmetic("float32"), count, {{{}}}, {{0, 0, count}}, 8, true};
}

Plan some_plan(int i, int rank, int size, int64_t count) {
  if (i % 4 == 3) return by_mpi(count);
  if (i % 4 == 0) return star(rank, size, count, i % 8 ? "bfloat16" : "float16");
  return ring(rank, size, count, 500);
}

void count_down(void* context, const char* error) {
  if (error) std::fprintf(stderr, "%s\n", error);
  static_cast<std::atomic<int>*>(context)->fetch_sub(error ? 1000 : 1);
}

}  // namespace

int main(int argc, char** argv) {
  int provided, rank, size;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Comm comm;
  MPI_Comm_dup(MPI_COMM_WORLD, &comm);
  int wrong = 0;
  {
    jaxdp::Engine engine(comm);
    constexpr int kPlans = 12, kDevices = 2;
    std::vector<std::vector<float>> in(kPlans), out(kPlans);
    for (int i = 0; i < kPlans; ++i) {
      const int64_t count = 1 + 1009 * i;
      engine.add_plan(some_plan(i, rank, size, count));
      in[i].resize(count);
      out[i].resize(count);
    }
    for (int repetition = 0; repetition < 30; ++repetition) {
      for (int i = 0; i < kPlans; ++i) {
        for (size_t k = 0; k < in[i].size(); ++k) in[i][k] = static_cast<float>((k + repetition + rank) % 32);
      }
      std::vector<int> order(kPlans);
      for (int i = 0; i < kPlans; ++i) order[i] = i;
      std::shuffle(order.begin(), order.end(), std::mt19937(100 * rank + repetition));
      std::atomic<int> left{kPlans};
      const auto start = [&](int first) {
        for (int k = first; k < kPlans; k += 2) {
          const int i = order[k];
          engine.start(i, in[i].data(), out[i].data(), i % kDevices, count_down, &left);
        }
      };
      std::thread other(start, 1);
      start(0);
      other.join();
      while (left > 0) std::this_thread::yield();
      if (left < 0) MPI_Abort(MPI_COMM_WORLD, 3);
      for (int i = 0; i < kPlans; ++i) {
        for (size_t k = 0; k < out[i].size(); ++k) {
          float expected = 0;
          for (int of = 0; of < size; ++of) expected += static_cast<float>((k + repetition + of) % 32);
          wrong += out[i][k] != expected;
        }
      }
    }
    engine.stop();
  }
  MPI_Comm_free(&comm);
  MPI_Finalize();
  if (rank == 0) std::printf("%d wrong\n", wrong);
  return wrong ? 1 : 0;
}
