"""The step along the tangent part of a direction, where it is more than the operations that it is made of.

    plane      one real matrix at rank one on a CPU, with as few calls of PyTorch as it takes
    kernels    small matrices on a GPU, the whole step in one launch
    factored   a direction that is known by its factors

`projunn_kernels.step` declares the operations and chooses; `projunn_kernels.factorization` has the formulas.
"""
