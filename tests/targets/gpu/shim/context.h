// A switch between stacks: what is left of a coroutine when it may not cost a system call.
#pragma once
#include <cstddef>
#include <cstdint>

namespace shim {

#if defined(__x86_64__) && !defined(SHIM_UCONTEXT)

// A suspended context is its stack pointer; what its function's caller counts on lies on its stack (System V ABI).
using Context = void*;

extern "C" void shim_switch(Context* from, Context to);
asm(R"(
.text
.p2align 4
.type shim_switch,@function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size shim_switch,.-shim_switch
)");

inline void make_context(Context* context, char* stack, size_t bytes, void (*entry)()) {
  auto top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t(15));
  *--top = nullptr;  // where a called function would find its return address
  *--top = reinterpret_cast<void*>(entry);
  *context = top - 6;
}

inline void switch_context(Context* from, Context* to) { shim_switch(from, *to); }

#elif defined(__aarch64__) && !defined(SHIM_UCONTEXT)

using Context = void*;

extern "C" void shim_switch(Context* from, Context to);
asm(R"(
.text
.p2align 4
.type shim_switch,%function
shim_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size shim_switch,.-shim_switch
)");

inline void make_context(Context* context, char* stack, size_t bytes, void (*entry)()) {
  auto top = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t(15)) - 20;
  top[10] = 0;  // x29: no frame above this one
  top[11] = reinterpret_cast<uint64_t>(entry);
  *context = top;
}

inline void switch_context(Context* from, Context* to) { shim_switch(from, *to); }

#else

}  // namespace shim
#include <ucontext.h>
namespace shim {

using Context = ucontext_t;

inline void make_context(Context* context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = bytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
}

inline void switch_context(Context* from, Context* to) { swapcontext(from, to); }

#endif

}  // namespace shim
