"""Products of a matrix with a few columns: ``W^H X`` and ``W X``, each one read of W.

W is (*batch, m, n), X (*batch, m, k) or (*batch, n, k) with k much smaller than n.  The products are
parts of other operations and are not registered as operators: `eager` has them in PyTorch, `launch` as
Triton kernels.
"""
