// The handler that orders the parts of a program: XLA on CPUs ignores optimization barriers, but not custom calls.

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

// Returns its first operand in the same memory. All other operands and results only order the program.
ffi::Error pass(ffi::RemainingArgs, ffi::RemainingRets) { return ffi::Error::Success(); }

}  // namespace

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxdp_xla_pass, pass, ffi::Ffi::Bind().RemainingArgs().RemainingRets());
#pragma GCC visibility pop
