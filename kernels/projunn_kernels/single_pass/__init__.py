"""A step of rank one that reads its direction once, and W once.

    pass over D     A = D^H R          B = D V
    in between      Q, T = Q F^H       of the step -rate R A^H, whose Z = W^H R is there already
    pass over W     W += (W Q) T^H     R, V <- B / |B|, A / |A| + 0.01 probes     W^H R for the next step

The probes keep A from being zero where D has none of the last one's rows, and B where it has none of its
columns.  A step along D = 0 leaves R and V as they are, for a next D that is not zero.

D is read once, W read and written once: three passes, as `torch.optim.SGD` has them.  Where D is what a
rule makes of a gradient, the pass over D is one over the gradient and the averages, which move in it; D
itself is not stored (`projunn_kernels.rules`).

R belongs to the gradient of the step before, and W^H R to the W that this step left.  Where W has
changed since, which its version or a few columns of it tell, W is read once more.
"""
