"""The machine that executes PTX: what instructions do, and that it finds what a GPU would do wrong."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.ptx.__main__ import main
from tests.ptx.machine import Loaded, Schedule, Wrong
from tests.ptx.program import Unknown
from tests.ptx.reading import read

COMPILER = shutil.which(os.environ.get("CC", "gcc"))
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

ORDERS = [Schedule(), Schedule(32), Schedule(32, descending=True)]
MODULE = """
.extern .shared .align 16 .b8 memory[];
.visible .entry kernel(
    .param .u64 .ptr .global .align 1 kernel_param_0,
    .param .u64 .ptr .global .align 1 kernel_param_1
)
.reqntid 64
{{
    .reg .pred %p<9>;
    .reg .b16 %rs<9>;
    .reg .b32 %r<99>;
    .reg .b64 %rd<99>;
    mov.u32 %r0, %tid.x;
    ld.param.b64 %rd0, [kernel_param_0];
    ld.param.b64 %rd1, [kernel_param_1];
    mul.wide.u32 %rd2, %r0, 4;
    add.s64 %rd3, %rd0, %rd2;
    add.s64 %rd4, %rd1, %rd2;
    mov.b32 %r9, memory;
    mad.lo.s32 %r8, %r0, 4, %r9;
    ld.global.b32 {{ %r1 }}, [ %rd3 + 0 ];
    {body}
    st.global.b32 [ %rd4 + 0 ], {{ %r2 }};
    ret;
}}
"""
# Thread t and its neighbour in the other warp change places.
EXCHANGE = """
    st.shared.b32 [%r8], %r1;
    {barrier}
    xor.b32 %r3, %r0, 32;
    mad.lo.s32 %r4, %r3, 4, %r9;
    ld.shared.b32 %r2, [%r4];
"""


def run(body, given=None, order=ORDERS[0], programs=1):
    """What 64 threads store, each a word; and the run."""
    given = np.arange(64, dtype=np.uint32) if given is None else np.asarray(given, np.uint32)
    made = np.zeros(64, np.uint32)
    memory = [(a.ctypes.data, a.ctypes.data + a.nbytes) for a in (given, made)]
    loaded = Loaded(read(MODULE.format(body=body), 256))
    told = loaded.run((programs,), [given.ctypes.data, made.ctypes.data], memory, order)
    return made, told


@pytest.mark.parametrize(
    ("instruction", "given", "wanted"),
    [
        ("shr.s32 %r2, %r1, 40;", 0x80000000, 0xFFFFFFFF),
        ("shl.b32 %r2, %r1, 32;", 0x1, 0x0),
        ("mul.hi.s32 %r2, %r1, %r1;", 0xFFFFFFFF, 0x0),
        ("bfe.s32 %r2, %r1, 4, 8;", 0xABCD1F85, 0xFFFFFFF8),
        ("prmt.b32 %r2, %r1, %r1, 0x0123U;", 0x11223344, 0x44332211),
        ("shf.l.wrap.b32 %r2, %r1, %r1, 8;", 0x12345678, 0x34567812),
        ("brev.b32 %r2, %r1;", 0x1, 0x80000000),
        ("popc.b32 %r2, %r1;", 0xF0F0, 8),
        ("fma.rn.f32 %r2, %r1, %r1, 0fBF800000;", 0x3F800001, 0x34800000),
        ("cvt.rna.tf32.f32 %r2, %r1;", 0x3F801000, 0x3F802000),
        ("cvt.rn.bf16x2.f32 %r2, %r1, 0f40000000;", 0x3F808000, 0x3F804000),
        ("cvt.rzi.s32.f32 %r2, %r1;", 0xC0200000, 0xFFFFFFFE),
        ("mov.b32 {%rs0, %rs1}, %r1; mov.b32 %r2, {%rs1, %rs0};", 0x11112222, 0x22221111),
        ("neg.bf16x2 %r2, %r1;", 0x3F80BF80, 0xBF803F80),
        ("setp.neu.f32 %p0, %r1, %r1; selp.b32 %r2, 1, 0, %p0;", 0x7FC00000, 1),
        ("add.cc.u32 %r3, %r1, %r1; addc.u32 %r2, 0, 0;", 0x80000000, 1),
        ("redux.sync.add.s32 %r2, %r0, -1; and.b32 %r2, %r2, 0;", 5, 0),
    ],
)
def test_an_instruction(instruction, given, wanted):
    made, _ = run(instruction, np.full(64, given, np.uint32))
    assert set(made.tolist()) == {wanted}


def test_a_sum_of_tensor_cores_is_cut_off():
    """1 + 1.875 ulp is 1 + 1 ulp there."""
    body = """
    mov.b32 %r3, 0x32F00000;
    mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32
        { %r2, %r4, %r5, %r6 }, { %r1, %r1, %r1, %r1 }, { %r3, %r3 }, { %r1, %r1, %r1, %r1 };
    """
    made, _ = run(body, np.full(64, 0x3F800000, np.uint32))
    assert set(made.tolist()) == {0x3F800001}


@pytest.mark.parametrize("order", ORDERS)
def test_warps_exchange_through_shared_memory(order):
    made, told = run(EXCHANGE.format(barrier="bar.sync 0;"), order=order)
    assert made.tolist() == [t ^ 32 for t in range(64)]
    assert told.races == 0


def test_a_missing_barrier_is_a_race_and_the_order_shows_it():
    assert run(EXCHANGE.format(barrier=""))[1].races
    made, _ = run(EXCHANGE.format(barrier=""), order=ORDERS[1])
    assert made[0] == 0xFFFFFFFF  # the first warp reads what the second has not written yet


def test_programs_that_write_different_numbers_to_a_place_race():
    assert "another program wrote it" in run("mov.u32 %r2, %ctaid.x;", programs=2)[1].race.decode()
    assert run("mov.u32 %r2, %r1;", programs=2)[1].races == 0


@pytest.mark.parametrize("order", ORDERS)
def test_threads_that_part_meet_again_at_a_shuffle(order):
    """The block where they meet is before those where they part, as compilers place it."""
    body = """
    and.b32 %r3, %r0, 1;
    setp.eq.b32 %p0, %r3, 0;
    mov.b32 %r4, 7;
    bra.uni $start;
    $meet:
    shfl.sync.bfly.b32 %r2, %r4, 1, 31, -1;
    bra.uni $end;
    $start:
    @%p0 bra $meet;
    add.s32 %r4, %r0, 100;
    bra.uni $meet;
    $end:
    """
    made, _ = run(body, order=order)
    assert made.tolist() == [7 if t % 2 else t + 101 for t in range(64)]


def test_a_copy_is_there_once_it_is_waited_for():
    body = """
    cp.async.ca.shared.global [ %r8 + 0 ], [ %rd3 + 0 ], 0x4;
    cp.async.commit_group;
    {wait}
    bar.sync 0;
    ld.shared.b32 %r2, [%r8];
    cp.async.wait_group 0;
    """
    assert run(body.format(wait="cp.async.wait_group 0;"))[0].tolist() == list(range(64))
    assert set(run(body.format(wait="cp.async.wait_group 1;"))[0].tolist()) == {0xFFFFFFFF}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("add.s64 %rd5, %rd3, 2; ld.global.b32 { %r2 }, [ %rd5 + 0 ];", "misaligned access of 4 bytes"),
        ("ld.global.b32 { %r2 }, [ %rd3 + 4096 ];", "global memory out of bounds"),
        ("ld.shared.b32 %r2, [%r8+4];", "shared memory out of bounds"),
        ("cp.async.ca.shared.global [ %r8 + 0 ], [ %rd3 + 0 ], 0x4;", "a copy is never waited for"),
        ("setp.eq.b32 %p0, %r0, 3; @%p0 shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1;", "does not run"),
    ],
)
def test_what_a_gpu_would_not_do_is_told(body, said):
    with pytest.raises(Wrong, match=said):
        run(body)


def test_an_unknown_instruction_is_told():
    with pytest.raises(Unknown, match=r"tcgen05\.alloc"):
        read(MODULE.format(body="tcgen05.alloc [%r8], 32;"), 0)


@pytest.mark.requires("triton")
@pytest.mark.parametrize(("architecture", "first"), [("sm_80", 250), ("sm_90", 150)])
def test_compiled_kernels_are_right(architecture, first):
    """Some of the checks of ``python -m tests.ptx``, in an order of warps that no program expects."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    options = ["--arch", architecture, "--every", "331", "--first", str(first), "--order", "descending"]
    command = [sys.executable, "-m", "tests.ptx", *options]
    found = subprocess.run(command, env=clean, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert ", 0 failed" in found.stdout


@pytest.mark.requires("triton")
def test_training_by_compiled_kernels_is_that_by_pytorch():
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ptx.training", "sm_90", "linear", "recurrent"]
    found = subprocess.run(command, env=clean, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    rows = [line.split() for line in found.stdout.splitlines()]
    assert [row[0] for row in rows] == ["linear", "recurrent"]
    for _, moved, off, launches, races in rows:
        assert float(moved) > 1e-3
        assert float(off) < 1e-5
        assert int(launches) > 0
        assert int(races) == 0


@pytest.mark.requires("triton")
def test_states_keep_their_norm_in_compiled_kernels():
    """To a tenth of a float32's rounding a step; in TF32 as its rounding does, not 7e-4 smaller."""
    rows = norms("260")
    assert [row[:2] for row in rows] == [["260", "real"], ["260", "complex"]]
    assert all(abs(float(row[2])) < 5e-9 for row in rows)
    assert all(abs(float(row[3])) < 2e-5 for row in rows)


@pytest.mark.requires("triton")
def test_transforms_keep_norms_in_compiled_kernels():
    """As sums in float32 do; in TF32 as the rounded constants do, not 4e-4 smaller by each product."""
    rows = norms("8x8", "16x16")
    assert [" ".join(row[:2]) for row in rows] == [
        f"{size} {what}" for size in ("8x8", "16x16") for what in ("transform", "both")
    ]
    assert all(abs(float(row[2])) < 4e-7 for row in rows)
    assert all(abs(float(row[3])) < 2e-4 for row in rows)


def norms(*sizes):
    """What ``python -m tests.ptx.norms`` prints, in words."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ptx.norms", "sm_90", *sizes]
    found = subprocess.run(command, env=clean, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return [line.split() for line in found.stdout.splitlines()]


def test_kernels_that_do_not_exist_are_no_success(monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(sys, "argv", ["ptx", "--op", "shear"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "got ['shear'], wanted the names of kernels" in capsys.readouterr().err
