"""Constants that several operations share."""

# The largest rank of the kernels that orthonormalize in registers, and of those that do so in memory.
# Wider factors take library functions.
MAX_RANK, MAX_MANY = 8, 64
# The most columns that a launch multiplies a matrix with: Q of a step has twice its rank.
MAX_COLUMNS = 2 * MAX_MANY
# The most programs that make one matrix's few columns orthonormal, a part of the columns each.
MAX_PARTS = 16
# The share of a fixed random matrix, the probe, that is added to a warm basis.  Without it a gradient
# that is orthogonal to the basis would be invisible for ever.
PROBE = 0.01
# The widest matrices whose step of rank 1 is one launch: more columns do not fit the registers.
MAX_FUSED = 128
# The most floats of a row of which programs make the columns of a step of rank 1 anew.
MAX_ROW = 1024
# The most programs along the second or third axis of a grid, and so the most matrices of a launch.
MAX_PROGRAMS = 65_535
# The most units of a time loop whose real W one multiprocessor holds for all of time.
MAX_HELD = 192
