// Allreduces that progress on a thread of their own: any number at once, each by the moves of a schedule.
#pragma once

// Not the C++ of MPI-2, which older libraries still declare but no longer bring along.
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

// One move of a round as its sender or its receiver sees it.
struct Transfer {
  int peer;
  bool sends;    // else it receives
  bool reduces;  // the receiver adds; else it overwrites
};

// A part of the payload that goes its way independently of all others.
struct Piece {
  int chunk;
  int64_t start, count;  // in values
};

// What this rank does to sum one payload. Ranks that have the same pieces in the same order, and plans added in the
// same order, understand one another.
struct Plan {
  using Round = std::vector<Transfer>;  // in the order in which additions apply

  std::string name;  // in messages
  const Arithmetic* arithmetic;
  int64_t count;                           // values in the payload
  std::vector<std::vector<Round>> chunks;  // the rounds of each, without those in which it rests
  std::vector<Piece> pieces;               // in the order in which they start
  int lanes;                               // pieces that move at once
  bool by_mpi = false;                     // MPI's own allreduce sums each piece, in one round without transfers
};

// Called once; error is null on success. It may run whatever follows in the program of its device, and wait there for
// other devices, but not for a later run of its own.
using Done = void (*)(void* context, const char* error);

// One allreduce that is over; times of the monotonic clock.
struct Event {
  int64_t plan, start_ns, end_ns;
};

// Allreduces that are over, and those that have been started and are not.
struct Counts {
  int64_t over, under_way;
};

// Runs plans over a communicator that is its own, and duplicates of it. Every function may be called from any thread.
//
// A run of a plan moves a few of its pieces at a time, in lanes. They start in order on all ranks, so that the first
// one that is not finished everywhere is always under way everywhere: whatever the order in which ranks start their
// plans, none waits for ever. Two runs of one plan follow one another, in the order of their start.
class Engine {
 public:
  // The communicator, which must stay alive, is set to return errors.
  explicit Engine(MPI_Comm comm);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Its number, or -1 if MPI has not as many tags. All ranks call it together for plans by MPI.
  int64_t add_plan(Plan plan);

  // Sums `in`, which stays as it is unless it is `out`, over all ranks into `out`; both stay alive until `done`, which
  // is called on the thread of this local device, or at once if the engine has failed or stopped.
  void start(int64_t plan, const void* in, void* out, int device, Done done, void* context);

  // Ends all threads; what is under way ends with an error. MPI must still be open.
  void stop();

  // Copies events from number `first` on, oldest first, as far as they are kept, and returns how many.
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

  // Shared between the threads, under the mutex.
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::unique_ptr<Bucket>> buckets_;
  std::vector<Run> starting_;
  std::vector<std::unique_ptr<Delivery>> deliveries_;  // one a local device
  std::vector<Event> events_;
  int64_t num_events_ = 0, num_started_ = 0;
  bool stopping_ = false, delivery_stopping_ = false;
  std::string error_;  // the first one: it ends everything

  // The progress thread's own.
  std::vector<Bucket*> active_;
  std::vector<MPI_Request> requests_;
  std::vector<std::pair<Lane*, int>> owners_;  // of each request: its lane, its peer
  std::vector<int> completed_;
  std::vector<MPI_Status> statuses_;
  std::vector<Lane*> rested_;
  std::map<size_t, std::vector<char*>> blocks_;  // free ones, by size
  std::string failure_;                          // of MPI

  std::thread progress_thread_;
};

}  // namespace jaxdp
