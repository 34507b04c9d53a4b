"""Micro benchmarks, each beside what PyTorch itself does in its place: ``python -m bench.micro``.

    update      the step of weights whose gradient is given, beside ``torch.optim``
    factorize   low-rank factors of a gradient, beside ``torch.svd_lowrank``
    layers      forward and backward, beside ``torch.nn``

pytest-benchmark runs them, for three minutes at most.  Each table is one group: in brackets after a time
stands its multiple of the shortest one of the group.  Every run is saved in ``.benchmarks/``, which git
ignores, and printed beside the run before it.  Options of pytest are passed on: ``-k linear`` chooses,
``--benchmark-compare=0003`` names another run to compare with.

The cases of a group run one after another, so a busy moment of the machine may meet one of them alone.
Ratios for the record come from ``python -m bench``, whose cases take turns.
"""
