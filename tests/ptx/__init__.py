"""Compiled kernels without a GPU: what Triton makes for one, in PTX, is executed on the processor.

The interpreter runs what a kernel says in Python; this runs what the compiler has made of it: its
layouts, barriers, copies, shuffles and products of tensor cores.  It stops at what a GPU would not do,
such as misaligned or foreign addresses, and reports races.  ``python -m tests.ptx`` has the checks that
each kernel passes on a GPU before its first use.

What it cannot see: what ``ptxas`` makes of PTX, how long anything takes, and the approximate functions
of a GPU (``ex2.approx`` is ``exp2`` here).
"""
