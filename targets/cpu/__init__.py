"""CPU kernels: portable vector code that LLVM fits to the instruction sets a `CpuTarget` promises."""
