"""``projunn reproduce``: the experiments of arXiv 2203.05483 by name.

``recipes`` lists them, ``gradients`` and ``runtime`` measure what is no training, and ``command`` is the
command line.
"""
