"""Fewer combinations of options than all, where three of them do not conspire."""


def pairwise(first, second, third):
    """Combinations in which every two values of different options meet at least once.

    All of ``first`` x ``second``, each with one value of ``third``, of which there are no more than of
    either of the others.
    """
    first, second, third = map(list, (first, second, third))
    assert len(third) <= min(len(first), len(second))
    return [
        (a, b, third[(i + j) % len(third)]) for i, a in enumerate(first) for j, b in enumerate(second)
    ]
