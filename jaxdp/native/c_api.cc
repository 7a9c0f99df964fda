// The interface of the engine: plain C functions for Python's ctypes, and the handler that XLA calls.

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <string>

#include "engine.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jaxdp {
namespace {

// A caller that waits for a run.
struct Waiter {
  std::mutex mutex;
  std::condition_variable wake;
  bool done = false;
  std::string error;
};

void wake(void* context, const char* error) {
  auto* waiter = static_cast<Waiter*>(context);
  std::lock_guard lock(waiter->mutex);
  waiter->done = true;
  if (error) waiter->error = error;
  waiter->wake.notify_one();
}

void keep_promise(void* context, const char* error) {
  auto* promise = static_cast<ffi::Promise*>(context);
  if (error) {
    promise->SetError(ffi::Error::Internal(error));
  } else {
    promise->SetAvailable();
  }
  delete promise;
}

// The engine that XLA's handler uses. Programs hold plan numbers instead of pointers, so that they can be cached.
Engine* engine_of_programs = nullptr;

ffi::Future refused(ffi::Error error) {
  ffi::Promise promise;
  ffi::Future future(promise);
  promise.SetError(std::move(error));
  return future;
}

// Sums one bucket of one local device: with plan number n, device d uses plan n + d.
ffi::Future allreduce(int64_t plan, ffi::AnyBuffer in, ffi::Buffer<ffi::S32> device, ffi::Result<ffi::AnyBuffer> out) {
  if (engine_of_programs == nullptr) return refused(ffi::Error::Internal("the allreduce engine is not open"));
  const int on = device.typed_data()[0];
  plan += on;
  const int64_t expected = engine_of_programs->num_values(plan);
  if (static_cast<int64_t>(in.element_count()) != expected) {
    return refused(ffi::Error::Internal("the payload does not have the size of its allreduce plan"));
  }
  auto* promise = new ffi::Promise();
  ffi::Future future(*promise);
  engine_of_programs->start(plan, in.untyped_data(), out->untyped_data(), on, keep_promise, promise);
  return future;
}

}  // namespace
}  // namespace jaxdp

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jaxdp_xla_allreduce, jaxdp::allreduce,
    ffi::Ffi::Bind().Attr<int64_t>("plan").Arg<ffi::AnyBuffer>().Arg<ffi::Buffer<ffi::S32>>().Ret<ffi::AnyBuffer>());

extern "C" {

jaxdp::Engine* jaxdp_open(int fortran_comm) { return new jaxdp::Engine(MPI_Comm_f2c(fortran_comm)); }

void jaxdp_serve_programs(jaxdp::Engine* engine) { jaxdp::engine_of_programs = engine; }

void jaxdp_stop(jaxdp::Engine* engine) { engine->stop(); }

// transfers: [num_transfers, 5] of chunk, round, peer, sends, reduces, sorted by chunk and round; pieces: [num_pieces,
// 3] of chunk, start, count. Returns the plan's number, or -1 if MPI has too few tags.
int64_t jaxdp_add_plan(jaxdp::Engine* engine, const char* name, const char* wire, int64_t count, int64_t num_chunks,
                       const int64_t* transfers, int64_t num_transfers, const int64_t* pieces, int64_t num_pieces,
                       int lanes, bool by_mpi) {
  jaxdp::Plan plan;
  plan.name = name;
  plan.arithmetic = jaxdp::find_arithmetic(wire);
  plan.count = count;
  plan.lanes = lanes;
  plan.by_mpi = by_mpi;
  plan.chunks.resize(num_chunks);
  for (const int64_t *row = transfers, *before = nullptr; row != transfers + 5 * num_transfers;
       before = row, row += 5) {
    auto& rounds = plan.chunks[row[0]];
    if (before == nullptr || before[0] != row[0] || before[1] != row[1]) rounds.emplace_back();
    rounds.back().push_back({static_cast<int>(row[2]), row[3] != 0, row[4] != 0});
  }
  if (by_mpi) plan.chunks[0].emplace_back();
  for (const int64_t* row = pieces; row != pieces + 3 * num_pieces; row += 3) {
    plan.pieces.push_back({static_cast<int>(row[0]), row[1], row[2]});
  }
  return engine->add_plan(std::move(plan));
}

// Waits for the sum. Returns 0, or 1 with the error in `message`, a buffer of `room` bytes.
int jaxdp_allreduce(jaxdp::Engine* engine, int64_t plan, const void* in, void* out, char* message, int64_t room) {
  jaxdp::Waiter waiter;
  engine->start(plan, in, out, 0, jaxdp::wake, &waiter);
  std::unique_lock lock(waiter.mutex);
  waiter.wake.wait(lock, [&] { return waiter.done; });
  message[waiter.error.copy(message, std::max<int64_t>(room, 1) - 1)] = '\0';
  return waiter.error.empty() ? 0 : 1;
}

// events: [most, 3] of plan, start and end, in nanoseconds of the monotonic clock. Returns the number of events.
int64_t jaxdp_events(const jaxdp::Engine* engine, jaxdp::Event* events, int64_t first, int64_t most) {
  return engine->events(events, first, most);
}

void jaxdp_counts(const jaxdp::Engine* engine, jaxdp::Counts* counts) { *counts = engine->counts(); }
}
#pragma GCC visibility pop
