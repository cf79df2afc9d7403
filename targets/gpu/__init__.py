"""GPU kernels: written once, parameterised by what a device can do, lowered to CUDA and Metal."""
