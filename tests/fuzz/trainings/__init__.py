"""Random courses of a training: what users do to models and optimizers between steps.

    nets        small models of every layer, and their inputs
    training    a model with its optimizer, and how both are built anew
    harmless    what must change nothing: copies, files, conversions to and fro, looks
    deeds       what changes something: steps, options, frozen weights, edits, new optimizers
    promises    what must hold after each of them

A course is carried out twice: by a training that does everything, and by its twin, which leaves out all
that is harmless.  Both must be the same bits at each point.
"""
