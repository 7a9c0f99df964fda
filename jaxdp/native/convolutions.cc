// Convolutions for XLA programs on CPUs with oneDNN: images are [B, H, W, C], kernels [height, width, C, D].

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "oneapi/tbb/task_arena.h"
#include "oneapi/tbb/task_group.h"
#include "operation.h"
#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;
using dnnl::memory;
using jaxdp::cpu;
using jaxdp::Operation;
using jaxdp::Shapes;
using jaxdp::Wanted;

constexpr size_t kAlignment = 64;

// Memory of one call, and the arena in which threads work on the call.
class Room {
 public:
  explicit Room(int64_t threads) : arena(static_cast<int>(threads), static_cast<unsigned>(threads)) {}

  char* of(size_t bytes) {
    if (size < bytes) {
      auto* const made = static_cast<char*>(std::aligned_alloc(kAlignment, bytes));
      if (made == nullptr) throw std::bad_alloc();
      data.reset(made);
      size = bytes;
    }
    return data.get();
  }

  // All slots are reserved for threads that enter explicitly, so TBB's own threads never join.
  tbb::task_arena arena;

 private:
  std::unique_ptr<char, void (*)(void*)> data{nullptr, std::free};
  size_t size = 0;
};

// Rooms and primitives for one number of threads. Rooms are reused from call to call, because fresh memory costs page
// faults; concurrent calls use one room each. Primitives hold no memory themselves.
class Workshop {
 public:
  static Workshop& of(int64_t threads) {
    static std::mutex mutex;
    static std::map<int64_t, Workshop> all;
    std::lock_guard lock(mutex);
    return all.try_emplace(threads, threads).first->second;
  }

  explicit Workshop(int64_t threads) : threads(threads) {}

  std::unique_ptr<Room> take() {
    std::lock_guard lock(mutex);
    if (rooms.empty()) return std::make_unique<Room>(threads);
    auto room = std::move(rooms.back());
    rooms.pop_back();
    return room;
  }

  void give_back(std::unique_ptr<Room> room) {
    std::lock_guard lock(mutex);
    rooms.push_back(std::move(room));
  }

  const Operation& find(Wanted wanted, const Shapes& shapes) {
    std::vector<int64_t> key{static_cast<int64_t>(wanted), static_cast<int64_t>(shapes.type)};
    for (const auto* dims : {&shapes.x, &shapes.kernel, &shapes.y, &shapes.strides, &shapes.before, &shapes.behind}) {
      key.insert(key.end(), dims->begin(), dims->end());
    }
    std::lock_guard lock(mutex);
    auto& found = operations[key];
    if (found == nullptr) found = std::make_unique<Operation>(wanted, shapes);
    return *found;
  }

 private:
  const int64_t threads;
  std::mutex mutex;
  std::vector<std::unique_ptr<Room>> rooms;
  std::map<std::vector<int64_t>, std::unique_ptr<Operation>> operations;
};

// Threads of XLA's pool that work in an arena together with this thread, for the lifetime of this object. TBB's own
// threads would come on top: more threads than cores, where idle threads take time from threads that have work.
class Company {
 public:
  Company(ffi::ThreadPool& pool, tbb::task_arena& arena) : table(std::make_shared<Table>()) {
    for (int64_t number = 1; number < pool.num_threads(); ++number) {
      auto& seat = table->seats.emplace_back();
      seat.until = seat.group.defer([] {});
      pool.Schedule([table = table, &seat, &arena] {
        // A late thread finds this call over, and the arena busy with another.
        if (!table->enter()) return;
        arena.execute([&] { seat.group.wait(); });
        table->leave();
      });
    }
  }

  ~Company() { table->clear(); }

 private:
  // A thread that waits for a group does other work of the arena meanwhile.
  struct Seat {
    tbb::task_group group;
    tbb::task_handle until;
  };

  struct Table {
    std::deque<Seat> seats;
    std::mutex mutex;
    std::condition_variable left;
    bool is_over = false;
    int present = 0;

    bool enter() {
      std::lock_guard lock(mutex);
      if (!is_over) ++present;
      return !is_over;
    }

    void leave() {
      std::lock_guard lock(mutex);
      --present;
      left.notify_one();
    }

    void clear() {
      std::unique_lock lock(mutex);
      is_over = true;
      for (auto& seat : seats) seat.until = {};
      left.wait(lock, [&] { return present == 0; });
    }
  };

  std::shared_ptr<Table> table;
};

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

memory::dims image_dims(ffi::AnyBuffer::Dimensions dims) { return {dims[0], dims[3], dims[1], dims[2]}; }

memory::dims kernel_dims(ffi::AnyBuffer::Dimensions dims) { return {dims[3], dims[2], dims[0], dims[1]}; }

void run(Wanted wanted, ffi::AnyBuffer x, ffi::AnyBuffer kernel, ffi::AnyBuffer y, ffi::Span<const int64_t> strides,
         ffi::Span<const int64_t> pads, Workshop& workshop, Room& room) {
  const Shapes shapes{x.element_type() == ffi::BF16 ? memory::data_type::bf16 : memory::data_type::f32,
                      image_dims(x.dimensions()),
                      kernel_dims(kernel.dimensions()),
                      image_dims(y.dimensions()),
                      {strides[0], strides[1]},
                      {pads[0], pads[2]},
                      {pads[1], pads[3]}};
  const Operation& operation = workshop.find(wanted, shapes);
  const size_t ordered_bytes = aligned(operation.ordered_kernel.get_size());
  const size_t scratch_bytes = aligned(std::max(operation.scratch.get_size(), operation.reorder_scratch.get_size()));
  char* const begin = room.of(ordered_bytes + scratch_bytes);
  thread_local dnnl::stream stream(cpu());
  memory of_x(operation.x, cpu(), x.untyped_data());
  memory of_y(operation.y, cpu(), y.untyped_data());
  memory as_given(operation.kernel, cpu(), kernel.untyped_data());
  memory ordered(operation.ordered_kernel, cpu(), begin);
  const memory scratch(operation.scratch, cpu(), begin + ordered_bytes);
  const memory reorder_scratch(operation.reorder_scratch, cpu(), begin + ordered_bytes);
  const bool reorders = operation.ordered_kernel != operation.kernel;
  if (!reorders) ordered = as_given;
  const auto reorder = [&](const memory& from, const memory& to) {
    operation.reorder.execute(stream,
                              {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}, {DNNL_ARG_SCRATCHPAD, reorder_scratch}});
  };
  const bool comes_out = wanted == Wanted::kKernelGradient;
  if (reorders && !comes_out) reorder(as_given, ordered);
  operation.primitive.execute(
      stream,
      {{operation.as_x, of_x}, {operation.as_kernel, ordered}, {operation.as_y, of_y}, {DNNL_ARG_SCRATCHPAD, scratch}});
  if (reorders && comes_out) reorder(ordered, as_given);
}

// Takes two of x, kernel and y, in this order, and computes the third, which `wanted` names.
ffi::Error serve(int64_t wanted, ffi::AnyBuffer first, ffi::AnyBuffer second, ffi::Result<ffi::AnyBuffer> out,
                 ffi::Span<const int64_t> strides, ffi::Span<const int64_t> pads, ffi::ThreadPool pool) {
  try {
    // Without a pool, XLA reports no threads.
    auto& workshop = Workshop::of(std::max<int64_t>(1, pool.num_threads()));
    auto room = workshop.take();
    room->arena.execute([&] {
      const Company company(pool, room->arena);
      switch (const auto what = static_cast<Wanted>(wanted)) {
        case Wanted::kOutput:
          return run(what, first, second, *out, strides, pads, workshop, *room);
        case Wanted::kInputGradient:
          return run(what, *out, first, second, strides, pads, workshop, *room);
        case Wanted::kKernelGradient:
          return run(what, first, *out, second, strides, pads, workshop, *room);
      }
    });
    workshop.give_back(std::move(room));
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("oneDNN convolution failed: ") + error.what());
  }
  return ffi::Error::Success();
}

}  // namespace

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdp_xla_convolution, serve,
                              ffi::Ffi::Bind()
                                  .Attr<int64_t>("wanted")
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<ffi::Span<const int64_t>>("strides")
                                  .Attr<ffi::Span<const int64_t>>("pads")
                                  .Ctx<ffi::ThreadPool>());

extern "C" {

// Whether oneDNN supports bfloat16 convolutions on this CPU.
bool jaxdp_has_bfloat16() {
  const auto needed = static_cast<unsigned>(dnnl::cpu_isa::avx512_core);
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & needed) == needed;
}
}
#pragma GCC visibility pop
