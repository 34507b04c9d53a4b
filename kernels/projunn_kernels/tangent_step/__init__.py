"""The step along the tangent part of a direction, where it is more than its operations in turn.

    plane      one real matrix at rank one on a CPU, with as few calls of PyTorch as it takes
    kernels    small matrices on a GPU, the whole step in one launch
    factored   a direction that is known by its factors

`projunn_kernels.step` declares the operations and chooses, and `projunn_kernels.factorization` has the
formulas.
"""
