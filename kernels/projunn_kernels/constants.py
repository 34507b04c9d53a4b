"""Constants that several operations share."""

# The largest rank of the kernels that orthonormalize in registers.  Wider factors take library
# functions.
MAX_RANK = 8
# The share of a fixed random matrix, the probe, that is added to a warm basis.  Without it a gradient
# that is orthogonal to the basis would be invisible for ever.
PROBE = 0.01
# The widest matrices whose step is one launch.  For k > 1 fewer columns fit into registers: those of
# real matrices, and so many numbers of an n x k factor of complex ones.
MAX_FUSED, MAX_REAL, MAX_COMPLEX = 128, 64, 512
# The most units of a time loop whose real W one multiprocessor holds for all of time.
MAX_HELD = 192
