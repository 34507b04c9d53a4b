"""Kernels for `test_carried`: what their loops forget is said where each loop begins.

Run as a program, without Triton's interpreter, it prints what `projunn_kernels.tuning.carried` finds.
"""

import triton
import triton.language as tl

from projunn_kernels.language.tiles import load_tile
from projunn_kernels.time_loop.kernels.blocks import add_product, load_columns, store_columns
from projunn_kernels.tuning.carried import forgotten_of


@triton.jit
def reads_in_the_next_turn(source, target, n):
    following = source
    for _t in range(n):  # forgets following
        tl.store(target, tl.load(following))
        following = source
        source -= 1


@triton.jit
def reads_after_the_loop(source, target, n):
    last = source
    for _t in range(n):  # forgets last
        last = source
        source += 1
    tl.store(target, tl.load(last))


@triton.jit
def rebinds_in_a_branch(source, target, n):
    following = source
    for t in range(n):  # forgets following
        if t % 2 == 0:
            following = source
        tl.store(target, tl.load(following))
        source -= 1


@triton.jit
def rebinds_in_an_inner_loop(source, target, n):
    following = source
    for _t in range(n):  # forgets following
        for _s in range(n):
            tl.store(target, tl.load(following))
            following = source
            source -= 1


@triton.jit
def rebinds_a_tuple(source, target, n):
    both = (source, target)
    for _t in range(n):  # forgets both
        tl.store(both[1], tl.load(both[0]))
        both = (source, target)
        source -= 1


@triton.jit
def has_a_while_loop(source, target, n):
    following = source
    while n > 0:  # forgets following
        tl.store(target, tl.load(following))
        following = source
        source -= 1
        n -= 1


@triton.jit
def _walk(source, target, n):
    following = source
    for _t in range(n):  # forgets following
        tl.store(target, tl.load(following))
        following = source
        source -= 1
    return source


@triton.jit
def calls_a_function(source, target, n):
    for _t in range(n):
        source = _walk(source, target, n)


@triton.jit
def reads_the_variable_of_a_loop(source, target, n):
    for t in range(n):  # forgets t
        tl.store(target + t, tl.load(source))
    tl.store(target, t)


@triton.jit
def is_the_old_backward_time_loop(source, target, n):
    # source: gradients of the states, then W; target: those of the inputs, then that of the first state
    batch, plane = 16, 16 * n
    w, grad_initial = source + n * plane, target + n * plane
    following = target
    depth = 0
    for _t in range(n):  # forgets following
        for first in range(0, n, 16):
            gr, gi = load_columns(source, first, batch, n, 16, 16, False)
            for k in range(0, depth, 16):
                mr, mi = load_tile(w, first + tl.arange(0, 16), k, n, n, 16, False)
                hr, hi = load_columns(following, k, batch, n, 16, 16, False)
                gr, gi = add_product(gr, gi, mr, mi, hr, hi, False, "ieee")
            store_columns(target, first, batch, n, gr, gi, 16, 16, False)
        tl.debug_barrier()
        following = target
        depth = n
        source -= plane
        target -= plane
    for first in range(0, n, 16):
        gr, gi = tl.zeros((16, 16), tl.float32), tl.zeros((16, 16), tl.float32)
        for k in range(0, n, 16):
            mr, mi = load_tile(w, first + tl.arange(0, 16), k, n, n, 16, False)
            hr, hi = load_columns(following, k, batch, n, 16, 16, False)
            gr, gi = add_product(gr, gi, mr, mi, hr, hi, False, "ieee")
        store_columns(grad_initial, first, batch, n, gr, gi, 16, 16, False)


@triton.jit
def is_right(source, target, n):
    following = target  # another value than source: carried
    unread = source  # bound again before it is read
    count = 0
    for t in range(n):
        if t % 2 == 0:
            following = source
        unread = source
        tl.store(target, tl.load(following) + tl.load(unread))
        for j in tl.static_range(2):
            source += j
            count += 1
    for t in range(count):
        tl.store(target + t, 0.0)


def main() -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {"source": "*fp32", "target": "*fp32", "n": "i32"}
    for kernel in list(globals().values()):
        if isinstance(kernel, triton.JITFunction) and kernel.arg_names == list(signature):
            source = ASTSource(kernel, signature=signature)
            for line in forgotten_of(source, GPUTarget("cuda", 90, 32), {}):
                print(f"{kernel.__name__}: {line}")


if __name__ == "__main__":
    main()
