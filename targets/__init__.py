"""What a machine can do, as data, and the kernels for it: one folder a family of machines."""
