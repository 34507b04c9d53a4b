"""Triton's interpreter without what it works out again at every operation: two thirds of its time.

A kernel is thousands of operations on small arrays, and around each of them the interpreter looks
through all of ``triton.language``, makes a table of numpy's types, and makes and checks the types of
blocks.  :func:`quicken` keeps all these.  It touches no number that a kernel computes, and a Triton
whose interpreter is written otherwise is left as it is.
"""

import functools
import hashlib
import inspect
import math

# Of the functions that are replaced, in triton 3.6 to 3.8: the first digits of their source's SHA-1.
KNOWN = ("0786ec22", "74e2c0b8", "5e48a558", "918c80e8")


def quicken(patch):
    """Whether the interpreter is quick, until ``patch`` (a ``pytest.MonkeyPatch``) is undone."""
    import triton.language as tl
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    names = ("_patch_lang", "_get_np_dtype")
    slow = [getattr(interpreter, name, None) for name in names]
    slow += [tl.block_type.__init__, tl.tensor.__init__]
    if None in slow or tuple(map(_digits, slow)) != KNOWN:
        return False
    patch.setattr(interpreter, names[0], _replacing_once(slow[0], interpreter._LangPatchScope, tl))
    patch.setattr(interpreter, names[1], _by_name(slow[1]))
    patch.setattr(tl.block_type, "__init__", _by_shape(slow[2]))
    patch.setattr(tl.tensor, "__init__", _of_block(tl))
    broadcast = TritonSemantic.broadcast_impl_value
    patch.setattr(TritonSemantic, "broadcast_impl_value", _unless_alike(broadcast))
    return True


def _digits(function):
    return hashlib.sha1(inspect.getsource(function).encode()).hexdigest()[:8]


def _replacing_once(replace, nothing, tl):
    """What a kernel's launch has replaced in ``triton.language`` stays so until its end."""
    is_builtin = tl.core.is_builtin

    @functools.cache
    def languages_of(function):
        seen = function.__globals__.values()
        return [lang for lang in (tl, tl.core) if any(value is lang for value in seen)]

    def replace_what_is_left(function):
        for lang in languages_of(function):
            if is_builtin(lang.load) or is_builtin(lang.tensor.__add__):
                return replace(function)
        return nothing()

    return replace_what_is_left


def _by_name(numpy_type):
    known = {}

    def found(dtype):
        name = dtype.scalar.name
        if name not in known:
            known[name] = numpy_type(dtype)
        return known[name]

    return found


def _by_shape(init):
    """The type of a block: all but the type of its elements is the same for all blocks of a shape."""
    known = {}

    def quick_init(self, element_ty, shape):
        key = tuple(size if type(size) is int else size.value for size in shape)
        if key not in known:
            init(self, element_ty, shape)
            known[key] = self.shape, self.numel, str(self.shape)
            return
        self.shape, self.numel, text = known[key]
        self.element_ty, self.name = element_ty, f"<{text}, {element_ty}>"

    return quick_init


def _of_block(tl):
    known = {}

    def quick_init(self, handle, type):
        shape = type.shape if type.is_block() else ()
        key = tuple(shape)
        if key not in known:
            known[key] = tl.tuple([tl.constexpr(size) for size in shape]), tl.constexpr(math.prod(key))
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = known[key]

    return quick_init


def _unless_alike(broadcast):
    """Nothing is to be done to two scalars, or to two blocks of one shape (here: of one tuple)."""

    def quick_broadcast(self, lhs, rhs):
        if lhs.shape is rhs.shape:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    return quick_broadcast
