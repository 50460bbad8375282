"""A device that is none: the kernels run on the CPU, behind as much of CuPy as the package uses."""
