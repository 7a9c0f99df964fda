#include "engine.h"

#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace jaxdp {
namespace {

constexpr size_t kMostEvents = 1 << 14;
constexpr int kAllRanks = -1;  // used instead of a peer

int64_t now_ns() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * int64_t{1000000000} + time.tv_nsec;
}

// How long to sleep when nothing has arrived for `idle_ns`: an eighth of it, so that a late message is delayed only a
// little more. No sleep at first, because messages through shared memory arrive within that time.
constexpr int64_t kSpin = 20'000, kLongest = 200'000;

int64_t rest_ns(int64_t idle_ns) { return idle_ns < kSpin ? 0 : std::min(idle_ns / 8, kLongest); }

}  // namespace

// One call of start().
struct Engine::Run {
  int64_t plan;
  const char* in;
  char* out;
  int device;
  Done done;
  void* context;
  int64_t start_ns;
  std::string error;
};

// A piece in progress.
struct Engine::Lane {
  Bucket* bucket;
  const Piece* piece;
  int tag;
  size_t round;
  const char* value;           // current values of the piece: in the input, from the first change on in the output
  char* wire;                  // what is sent, if it differs from `value`
  std::vector<char*> arrived;  // where each receiving transfer receives: a block, or the output
  int pending;                 // number of unfinished requests
};

// A plan and its runs.
struct Engine::Bucket {
  Plan plan;
  MPI_Comm comm;  // separate for plans by MPI: collectives on one must start in the same order on all ranks
  int first_tag;
  size_t block_bytes;
  std::vector<Run> runs;  // the first one is in progress
  size_t next_piece = 0, finished_pieces = 0;
  std::vector<Lane> lanes;
  std::vector<Lane*> free_lanes;
};

// The finished runs of one local device, and the thread that reports them.
struct Engine::Delivery {
  std::vector<Run> finished;
  std::condition_variable wake;
  std::thread thread;
};

Engine::Engine(MPI_Comm comm) : comm_(comm) {
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  MPI_Comm_rank(comm_, &rank_);
  int* bound = nullptr;
  int found = 0;
  MPI_Comm_get_attr(comm_, MPI_TAG_UB, &bound, &found);
  largest_tag_ = found ? *bound : 32767;
  events_.resize(kMostEvents);
  progress_thread_ = std::thread([this] { progress(); });
}

Engine::~Engine() {
  stop();
  for (auto& [bytes, blocks] : blocks_) {
    for (char* block : blocks) std::free(block);
  }
}

int64_t Engine::add_plan(Plan plan) {
  MPI_Comm comm = comm_;
  if (plan.by_mpi) MPI_Comm_dup(comm_, &comm);
  std::lock_guard lock(mutex_);
  const int num_pieces = static_cast<int>(plan.pieces.size());
  if (num_pieces > largest_tag_ - next_tag_) return -1;
  auto bucket = std::make_unique<Bucket>();
  int64_t largest = 0;
  for (const Piece& piece : plan.pieces) largest = std::max(largest, piece.count);
  bucket->block_bytes = largest * plan.arithmetic->payload_bytes;
  bucket->comm = comm;
  bucket->first_tag = next_tag_;
  next_tag_ += num_pieces;
  bucket->plan = std::move(plan);
  bucket->lanes.resize(std::min(bucket->plan.lanes, num_pieces));
  for (Lane& lane : bucket->lanes) bucket->free_lanes.push_back(&lane);
  buckets_.push_back(std::move(bucket));
  return static_cast<int64_t>(buckets_.size()) - 1;
}

void Engine::start(int64_t plan, const void* in, void* out, int device, Done done, void* context) {
  std::string refusal;
  {
    std::lock_guard lock(mutex_);
    refusal = stopping_ ? "the allreduce engine has stopped" : error_;
    if (refusal.empty()) {
      while (deliveries_.size() <= static_cast<size_t>(device)) {
        deliveries_.push_back(std::make_unique<Delivery>());
        deliveries_.back()->thread = std::thread([this, delivery = deliveries_.back().get()] { deliver(*delivery); });
      }
      starting_.push_back(
          {plan, static_cast<const char*>(in), static_cast<char*>(out), device, done, context, now_ns(), {}});
      ++num_started_;
      wake_.notify_one();
    }
  }
  if (!refusal.empty()) done(context, refusal.c_str());
}

void Engine::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_one();
  }
  if (progress_thread_.joinable()) progress_thread_.join();
  {
    std::lock_guard lock(mutex_);
    delivery_stopping_ = true;
    for (const auto& delivery : deliveries_) delivery->wake.notify_one();
  }
  for (const auto& delivery : deliveries_) {
    if (delivery->thread.joinable()) delivery->thread.join();
  }
}

int64_t Engine::events(Event* out, int64_t first, int64_t most) const {
  std::lock_guard lock(mutex_);
  const int64_t start = std::max(first, num_events_ - static_cast<int64_t>(kMostEvents));
  const int64_t count = std::clamp<int64_t>(num_events_ - start, 0, most);
  for (int64_t i = 0; i < count; ++i) out[i] = events_[(start + i) % kMostEvents];
  return count;
}

Counts Engine::counts() const {
  std::lock_guard lock(mutex_);
  return {num_events_, num_started_ - num_events_};
}

int64_t Engine::num_values(int64_t plan) const {
  std::lock_guard lock(mutex_);
  return buckets_[plan]->plan.count;
}

// The progress thread: takes up new runs, advances pieces, and sleeps when nothing is in progress.
void Engine::progress() {
  pthread_setname_np(pthread_self(), "jaxdp-progress");
  prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);  // 1 us, so that sleeps of microseconds do not last longer
  int64_t last_progress = now_ns();
  while (true) {
    {
      std::unique_lock lock(mutex_);
      const auto called = [this] { return stopping_ || !starting_.empty(); };
      if (active_.empty()) {
        wake_.wait(lock, called);
      } else if (const int64_t rest = rest_ns(now_ns() - last_progress); rest > 0) {
        wake_.wait_for(lock, std::chrono::nanoseconds(rest), called);
      }
      if (stopping_) break;
      if (!starting_.empty()) last_progress = now_ns();
      take_up();
    }

    bool moved = complete_some();
    for (size_t i = 0; i < active_.size();) {
      Bucket& bucket = *active_[i];
      moved |= admit(bucket);
      if (bucket.finished_pieces < bucket.plan.pieces.size()) {
        ++i;
        continue;
      }
      finish(bucket, nullptr);
      moved = true;
      if (bucket.runs.empty()) active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(i));
    }
    if (moved) {
      last_progress = now_ns();
    } else {
      sched_yield();
    }
  }
  fail("the allreduce engine has stopped");
}

// Takes up the runs that were started. Called under the mutex, because plans may be added at the same time.
void Engine::take_up() {
  for (Run& run : starting_) {
    Bucket& bucket = *buckets_[run.plan];
    bucket.runs.push_back(std::move(run));
    if (bucket.runs.size() == 1) active_.push_back(&bucket);
  }
  starting_.clear();
}

// Starts pieces as long as lanes are free.
bool Engine::admit(Bucket& bucket) {
  bool moved = false;
  while (bucket.next_piece < bucket.plan.pieces.size() && !bucket.free_lanes.empty()) {
    Lane& lane = *bucket.free_lanes.back();
    bucket.free_lanes.pop_back();
    const Piece& piece = bucket.plan.pieces[bucket.next_piece];
    lane.bucket = &bucket;
    lane.piece = &piece;
    lane.tag = bucket.first_tag + static_cast<int>(bucket.next_piece);
    lane.round = 0;
    lane.value = bucket.runs.front().in + piece.start * bucket.plan.arithmetic->payload_bytes;
    ++bucket.next_piece;
    step(lane);
    moved = true;
  }
  return moved;
}

// Begins the next round of a piece, or finishes the piece after its last round.
void Engine::step(Lane& lane) {
  Bucket& bucket = *lane.bucket;
  if (lane.round < bucket.plan.chunks[lane.piece->chunk].size()) {
    if (bucket.plan.by_mpi) {
      begin_by_mpi(lane);
    } else {
      begin_round(lane);
    }
    return;
  }
  const Arithmetic& arithmetic = *bucket.plan.arithmetic;
  char* out = bucket.runs.front().out + lane.piece->start * arithmetic.payload_bytes;
  if (lane.value != out) std::memcpy(out, lane.value, lane.piece->count * arithmetic.payload_bytes);
  bucket.free_lanes.push_back(&lane);
  ++bucket.finished_pieces;
}

// Posts all messages of a round; they carry the values from before the round.
void Engine::begin_round(Lane& lane) {
  Bucket& bucket = *lane.bucket;
  const Arithmetic& arithmetic = *bucket.plan.arithmetic;
  const Plan::Round& round = bucket.plan.chunks[lane.piece->chunk][lane.round];
  char* out = bucket.runs.front().out + lane.piece->start * arithmetic.payload_bytes;

  const auto num_sends = std::count_if(round.begin(), round.end(), [](const Transfer& t) { return t.sends; });
  const bool hands_out =
      std::any_of(round.begin(), round.end(), [](const Transfer& t) { return t.sends && !t.reduces; });
  lane.wire = nullptr;
  if (num_sends > 0 && arithmetic.narrow()) {
    lane.wire = take_block(bucket.block_bytes);
    arithmetic.encode(lane.wire, lane.value, lane.piece->count);
    if (hands_out) {
      // The copies that are sent are rounded, so this rank's own copy must be rounded too.
      arithmetic.decode(out, lane.wire, lane.piece->count);
      lane.value = out;
    }
  }
  const bool out_is_free = static_cast<std::ptrdiff_t>(round.size()) - num_sends == 1 && !arithmetic.narrow() &&
                           (num_sends == 0 || lane.value != out);
  const int bytes = static_cast<int>(lane.piece->count * arithmetic.wire_bytes);
  lane.arrived.clear();
  lane.pending = static_cast<int>(round.size());
  for (const Transfer& transfer : round) {
    MPI_Request request = MPI_REQUEST_NULL;
    int code;
    if (transfer.sends) {
      const void* data = lane.wire ? lane.wire : lane.value;
      code = MPI_Isend(data, bytes, MPI_BYTE, transfer.peer, lane.tag, comm_, &request);
    } else {
      const bool into_out = out_is_free && !transfer.reduces;
      lane.arrived.push_back(into_out ? out : take_block(bucket.block_bytes));
      code = MPI_Irecv(lane.arrived.back(), bytes, MPI_BYTE, transfer.peer, lane.tag, comm_, &request);
    }
    if (code != MPI_SUCCESS) note_failure(lane, transfer.peer, code);
    requests_.push_back(request);
    owners_.emplace_back(&lane, transfer.peer);
  }
}

// Starts MPI's own allreduce of a piece; pieces start in the same order on all ranks.
void Engine::begin_by_mpi(Lane& lane) {
  Bucket& bucket = *lane.bucket;
  const size_t value_bytes = bucket.plan.arithmetic->payload_bytes;
  char* out = bucket.runs.front().out + lane.piece->start * value_bytes;
  const void* in = lane.value == out ? MPI_IN_PLACE : lane.value;
  const MPI_Datatype type = value_bytes == sizeof(float) ? MPI_FLOAT : MPI_DOUBLE;
  MPI_Request request = MPI_REQUEST_NULL;
  const int code = MPI_Iallreduce(in, out, static_cast<int>(lane.piece->count), type, MPI_SUM, bucket.comm, &request);
  if (code != MPI_SUCCESS) note_failure(lane, kAllRanks, code);
  lane.value = out;
  lane.pending = 1;
  requests_.push_back(request);
  owners_.emplace_back(&lane, kAllRanks);
}

// Applies what was received in a round, in the order of its moves.
void Engine::finish_round(Lane& lane) {
  Bucket& bucket = *lane.bucket;
  const Arithmetic& arithmetic = *bucket.plan.arithmetic;
  const int64_t count = lane.piece->count;
  char* out = bucket.runs.front().out + lane.piece->start * arithmetic.payload_bytes;
  if (lane.wire) give_block(bucket.block_bytes, lane.wire);
  size_t next = 0;
  for (const Transfer& transfer : bucket.plan.chunks[lane.piece->chunk][lane.round]) {
    if (transfer.sends) continue;
    char* block = lane.arrived[next++];
    if (transfer.reduces) {
      arithmetic.add(out, lane.value, block, count);
    } else if (arithmetic.narrow()) {
      arithmetic.decode(out, block, count);
    } else if (block != out) {
      std::memcpy(out, block, count * arithmetic.payload_bytes);
    }
    lane.value = out;
    if (block != out) give_block(bucket.block_bytes, block);
  }
  ++lane.round;
}

// Continues the pieces whose messages are complete; returns whether there were any.
bool Engine::complete_some() {
  if (!failure_.empty()) {
    fail(failure_);
    return false;
  }
  if (requests_.empty()) return false;
  int num_completed = 0;
  completed_.resize(requests_.size());
  statuses_.resize(requests_.size());
  const int code = MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &num_completed, completed_.data(),
                                statuses_.data());
  if (num_completed == MPI_UNDEFINED || (num_completed == 0 && code == MPI_SUCCESS)) return false;
  rested_.clear();
  for (int i = 0; i < num_completed; ++i) {
    auto [lane, peer] = owners_[completed_[i]];
    const int outcome = code == MPI_ERR_IN_STATUS ? statuses_[i].MPI_ERROR : code;
    if (outcome != MPI_SUCCESS) note_failure(*lane, peer, outcome);
    if (--lane->pending == 0) rested_.push_back(lane);
  }
  if (!failure_.empty()) return true;
  size_t kept = 0;
  for (size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] == MPI_REQUEST_NULL) continue;
    requests_[kept] = requests_[i];
    owners_[kept++] = owners_[i];
  }
  requests_.resize(kept);
  owners_.resize(kept);
  for (Lane* lane : rested_) {
    finish_round(*lane);
    step(*lane);
  }
  return true;
}

// Ends the first run of a bucket.
void Engine::finish(Bucket& bucket, const char* error) {
  Run run = std::move(bucket.runs.front());
  bucket.runs.erase(bucket.runs.begin());
  bucket.next_piece = bucket.finished_pieces = 0;
  if (error) run.error = error;
  std::lock_guard lock(mutex_);
  events_[num_events_++ % kMostEvents] = {run.plan, run.start_ns, now_ns()};
  hand_over(std::move(run));
}

// Hands a finished run to the thread of its device. Called under the mutex.
void Engine::hand_over(Run run) {
  Delivery& delivery = *deliveries_[run.device];
  delivery.finished.push_back(std::move(run));
  delivery.wake.notify_one();
}

void Engine::note_failure(const Lane& lane, int peer, int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  const std::string whom = peer == kAllRanks ? "the other ranks" : "rank " + std::to_string(peer);
  failure_ = "rank " + std::to_string(rank_) + " could not exchange " + lane.bucket->plan.name + " with " + whom +
             ": " + std::string(text, length);
}

// Ends all runs with an error, now and later. Messages that MPI still holds are abandoned: the job cannot continue.
void Engine::fail(const std::string& error) {
  {
    std::lock_guard lock(mutex_);
    error_ = error;
    take_up();
  }
  for (Bucket* bucket : active_) {
    while (!bucket->runs.empty()) finish(*bucket, error.c_str());
  }
  active_.clear();
  requests_.clear();
  owners_.clear();
}

// A delivery thread. What follows an allreduce in its program may run on the thread that reports the allreduce as done.
// It must not delay messages, so it is not the progress thread. It may wait for other devices of this rank, so every
// device has a separate thread.
void Engine::deliver(Delivery& delivery) {
  pthread_setname_np(pthread_self(), "jaxdp-delivery");
  std::vector<Run> taken;
  std::unique_lock lock(mutex_);
  while (true) {
    delivery.wake.wait(lock, [&] { return delivery_stopping_ || !delivery.finished.empty(); });
    if (delivery.finished.empty()) return;
    taken.swap(delivery.finished);
    lock.unlock();
    for (const Run& run : taken) run.done(run.context, run.error.empty() ? nullptr : run.error.c_str());
    taken.clear();
    lock.lock();
  }
}

// Blocks are reused, and written once when allocated, because page faults would cost more than the sums.
char* Engine::take_block(size_t bytes) {
  std::vector<char*>& blocks = blocks_[bytes];
  if (blocks.empty()) {
    constexpr size_t kLine = 64;
    const size_t rounded = (bytes + kLine - 1) / kLine * kLine;
    char* block = static_cast<char*>(std::aligned_alloc(kLine, rounded));
    std::memset(block, 0, rounded);
    return block;
  }
  char* block = blocks.back();
  blocks.pop_back();
  return block;
}

void Engine::give_block(size_t bytes, char* block) { blocks_[bytes].push_back(block); }

}  // namespace jaxdp
