// Runs allreduces on a background thread: any number concurrently, each following the moves of a schedule.
#pragma once

// Leave out the C++ bindings of MPI-2, which older libraries still declare but no longer ship.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "arithmetic.h"

namespace jaxdp {

// One move of a round, as seen by its sender or its receiver.
struct Transfer {
  int peer;
  bool sends;    // otherwise this rank receives
  bool reduces;  // the receiver adds; otherwise it overwrites
};

// A part of the payload that is summed independently of all other parts.
struct Piece {
  int chunk;
  int64_t start, count;  // in values
};

// What this rank does to sum one payload. All ranks must have the same pieces in the same order, and must add their
// plans in the same order.
struct Plan {
  using Round = std::vector<Transfer>;  // in the order in which additions are applied

  std::string name;  // used in error messages
  const Arithmetic* arithmetic;
  int64_t count;                           // number of values in the payload
  std::vector<std::vector<Round>> chunks;  // the rounds of each chunk, without those in which this rank is idle
  std::vector<Piece> pieces;               // in the order in which they start
  int lanes;                               // number of pieces that move at once
  bool by_mpi = false;                     // MPI's own allreduce sums each piece, in one round without transfers
};

// Called once; error is null on success. It may run whatever follows in the program of its device, and may wait there
// for other devices, but not for a later run on its own device.
using Done = void (*)(void* context, const char* error);

// One finished allreduce; times are those of the monotonic clock.
struct Event {
  int64_t plan, start_ns, end_ns;
};

// Number of finished and of pending allreduces.
struct Counts {
  int64_t over, under_way;
};

// Runs plans over a communicator that only the engine uses, and duplicates of it. Every function may be called from any
// thread.
//
// A run of a plan moves a few of its pieces at a time, in lanes. Pieces start in the same order on all ranks, so the
// first piece that is not finished on all ranks is in progress on all ranks. Therefore no rank waits forever, whatever
// the order in which ranks start their plans. Two runs of the same plan follow one another in the order of their start.
class Engine {
 public:
  // The communicator must outlive the engine. Its error handler is set to return errors.
  explicit Engine(MPI_Comm comm);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Returns the plan's number, or -1 if MPI has too few tags. Plans by MPI must be added by all ranks together.
  int64_t add_plan(Plan plan);

  // Sums `in` over all ranks into `out`. `in` is not changed, unless it is `out`. Both must stay alive until `done` is
  // called: on the thread of this local device, or immediately if the engine has failed or stopped.
  void start(int64_t plan, const void* in, void* out, int device, Done done, void* context);

  // Ends all threads; pending runs end with an error. Must be called before MPI is finalized.
  void stop();

  // Copies at most `most` events, oldest first, from number `first` or the oldest one kept. Returns how many.
  int64_t events(Event* out, int64_t first, int64_t most) const;

  Counts counts() const;

  int64_t num_values(int64_t plan) const;

 private:
  struct Run;
  struct Lane;
  struct Bucket;
  struct Delivery;

  void progress();
  void take_up();
  bool admit(Bucket& bucket);
  void begin_round(Lane& lane);
  void begin_by_mpi(Lane& lane);
  void finish_round(Lane& lane);
  void step(Lane& lane);
  bool complete_some();
  void finish(Bucket& bucket, const char* error);
  void note_failure(const Lane& lane, int peer, int code);
  void fail(const std::string& error);
  void hand_over(Run run);
  void deliver(Delivery& delivery);

  char* take_block(size_t bytes);
  void give_block(size_t bytes, char* block);

  const MPI_Comm comm_;
  int rank_ = 0, largest_tag_ = 0, next_tag_ = 0;

  // Shared between threads, protected by the mutex.
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::unique_ptr<Bucket>> buckets_;
  std::vector<Run> starting_;
  std::vector<std::unique_ptr<Delivery>> deliveries_;  // one per local device
  std::vector<Event> events_;
  int64_t num_events_ = 0, num_started_ = 0;
  bool stopping_ = false, delivery_stopping_ = false;
  std::string error_;  // once set, all runs fail with it

  // Used only by the progress thread.
  std::vector<Bucket*> active_;
  std::vector<MPI_Request> requests_;
  std::vector<std::pair<Lane*, int>> owners_;  // lane and peer of each request
  std::vector<int> completed_;
  std::vector<MPI_Status> statuses_;
  std::vector<Lane*> rested_;
  std::map<size_t, std::vector<char*>> blocks_;  // free blocks, by size
  std::string failure_;                          // an error of MPI

  std::thread progress_thread_;
};

}  // namespace jaxdp
