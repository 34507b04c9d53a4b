"""The Triton side of the operations: jit functions, launchers, and how they are configured.

Importing it needs triton, so nothing but `projunn_kernels`' dispatch imports it, and only when a Triton
path runs.  From the bottom up::

    tiles          a tile of a real or complex matrix: load, store, products with columns
    float64        reciprocal, root, cos and sin without subroutines
    plane          k = 1: basis and rotation of a step, closed form
    small          k > 1: float64 functions of 2k x 2k matrices in registers
    fused_step     factor, project, retract, write: one program a block, one launch
    streaming      products and row update of one large matrix, a launch each
    step_basis     the factors between those passes
    rank_update    the block-sparse low-rank update
    recurrence     the time loop of an RNN, forward and backward, a launch each
    polish         Newton-Schulz against drift, when it is due
    spectral       products of spectra and matrices, a frequency a warp
    launch         pointer tables, grids, and what each launch passes; launch_factors,
                   launch_recurrence, launch_spectral
    interception   something in the kernels' place: for what follows, and the tests
    autotune       times configurations
    aot            compiles for GPUs that are not there: aot_problems launches, binaries reads

Complex numbers are interleaved real pairs; inside a kernel they are two tensors ``re, im``, and for real
matrices (``PAIRS`` False) ``im`` is a stand-in that is never read.
"""
