"""A fuzzer: hostile cases, each checked against float64 and the library's promises.

    python -m tests.fuzz --cases 20000       all families; a violation is one line, (family, seed)
    python -m tests.fuzz optimizers 4711     that case again, with its traceback

A case follows from (family, seed) alone: the numbers come from generators of its own, and nothing is
kept between cases.  Plain seeded generators are used in place of hypothesis, because its reproducing
blobs depend on its version, its search grows towards small and simple inputs, and what breaks numerics
is neither; two numbers stay true in a list for years (`found.txt`).

A family is a module of `tests.fuzz.families` with

    SHARE                  how many of a hundred cases are of it
    case(draw)             draws a case from a `Draw` and raises `Violation` if a promise is broken

Any other exception out of ``case`` counts as a violation too: a family expects those that it may get.
"""
