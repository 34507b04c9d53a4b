"""Constants that several operations share."""

# The largest rank of the kernels that orthonormalize in registers; wider factors take library functions.
MAX_RANK = 8
# Share of a fixed random direction in a warm basis, without which a gradient orthogonal to the basis
# would be invisible for ever.
PROBE = 0.01
# The widest matrices whose step is one launch, and the most floats of their n x k factors: more do not
# fit # the registers.
MAX_FUSED = 128
MAX_FACTOR_FLOATS = 1024
