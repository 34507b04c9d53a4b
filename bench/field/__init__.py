"""Training against the field: one budget, the same seeds, batches and trials for every method.

``docs/protocol.md`` says the rules.  ``cases`` has the tasks, ``recurrent``, ``matrices`` and
``convolutions`` the methods, ``trial`` trains one of them, ``protocol`` decides which trainings there
are, and ``report`` makes tables and pictures of their rows.
"""
