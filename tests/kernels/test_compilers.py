"""Kernels compiled ahead of their launch, really, for a GPU that is not there.

In processes of their own, since this one's kernels are the interpreter's.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

# Launches of a few kernels, as the autotuner would have them compiled for an H100.
BEGIN = """
import json, os, sys, time
import projunn_kernels
from projunn_kernels.configs.closed_form import candidates
from projunn_kernels.configs.kernel import KERNELS
from projunn_kernels.tuning.aot_problems import launches_of
from projunn_kernels.tuning import compilers
from projunn_kernels.tuning.compilers import Compilers, compilation
from projunn_kernels.configs.problem import Device, Problem

TARGET = ("cuda", 90, 32)
DEVICE = Device("NVIDIA H100 80GB HBM3", "9.0", 132, 232_448)


def launches(operation, k=1, count=2):
    problem = Problem(operation, False, k, 1024, 1024, 1)
    tried = candidates(problem, DEVICE)[:count]
    variant = next(KERNELS[operation].variants_of(problem))
    return [one for config in tried for one in launches_of(problem, config, **variant)]


def wanted(made):
    return [compilation(kernel.__name__, args, constants) for kernel, args, constants in made]

"""


def script(tmp_path, text):
    """The command and environment of a program that has `BEGIN` in front of it."""
    file = tmp_path / "program.py"
    file.write_text(BEGIN + textwrap.dedent(text))
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join(one for one in sys.path if one)
    environment = clean | {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": path}
    return {"args": [sys.executable, str(file)], "env": environment, "text": True}


def run(tmp_path, text):
    result = subprocess.run(**script(tmp_path, text), capture_output=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_a_launch_finds_what_was_compiled_ahead_of_it(tmp_path):
    """What the autotuner asks for, each binary once, in other processes; a launch compiles nothing."""
    seen = run(
        tmp_path,
        """
        from types import SimpleNamespace

        import torch
        from projunn_kernels.configs import choice as tuning
        from projunn_kernels.tuning import autotune
        from projunn_kernels.launching import intercepted

        class WithoutGPU:
            # A kernel whose launch ends where the GPU would begin.
            def __init__(self, kernel):
                self._kernel = kernel

            def __getitem__(self, grid):
                return lambda **arguments: self._kernel.warmup(grid=grid, **arguments)

        if __name__ == "__main__":
            import triton
            from triton.backends.compiler import GPUTarget
            from triton.runtime import driver

            autotune.candidates = lambda *told: candidates(*told)[:2]
            problems = [Problem(name, False, 1, 1024, 1024, 1) for name in ("rank_update", "basis")]
            problems.append(Problem("fused_step", True, 1, 64, 64, 3))
            cpu, counts = torch.device("cpu"), []
            needed = [one for p in problems for one in autotune._prepare(p, cpu, DEVICE).needed()]
            with Compilers(2, TARGET) as workers:
                found = workers.compile(needed, done=counts.append)
            hits = []
            triton.knobs.compilation.listener = lambda **told: hits.append(told["cache_hit"])
            there = GPUTarget(*TARGET)
            driver.set_active(SimpleNamespace(
                get_current_target=lambda: there,
                get_current_device=lambda: 0,
                get_current_stream=lambda device: 0,
            ))
            for problem in problems:
                launch, _ = autotune._case(problem, cpu)
                for config in candidates(problem, DEVICE)[:2]:
                    with tuning.using({problem.operation: config}), intercepted(WithoutGPU):
                        launch()
            print(json.dumps([list(found.values()), counts, hits, len(set(needed))]))
        """,
    )
    reasons, counts, hits, distinct = seen
    assert reasons == [""] * distinct
    assert counts == list(range(1, distinct + 1))
    assert hits == [True] * distinct  # none is left out, and none compiled by the launch
    assert distinct == 2 + (1 + 2 + 1) + 2  # a turn makes two launches more, the same for each basis


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What becomes of kernels that are wrong, crash or hang the compiler, or are out of time."""
    return run(
        tmp_path_factory.mktemp("outcomes"),
        """
        from dataclasses import replace

        here = "launching" if __name__ == "__main__" else "compiling"

        class StandIn:
            cache_key = here

            def __init__(self, act):
                self.warmup = lambda *args, **constants: act(self)

        def report(kernel):
            raise RuntimeError(f"the key is {kernel.hash}")

        stand_ins = {
            "crash": StandIn(lambda kernel: os._exit(7)),
            "hang": StandIn(lambda kernel: time.sleep(600)),
            "moody": StandIn(report),
        }
        known = compilers.kernels
        compilers.kernels = lambda: known() | stand_ins
        if __name__ == "__main__":
            good, other = wanted(launches("rank_update"))
            wrong = replace(good, constants=tuple(sorted((dict(good.constants) | {"BM": 7}).items())))
            told = {name: replace(good, kernel=name) for name in stand_ins}
            told |= {"wrong": wrong, "good": good}
            with Compilers(2, TARGET, longest=8.0) as workers:
                found = workers.compile(told.values())
                reasons = {name: found[one] for name, one in told.items()}
                alive = [worker.process.is_alive() for worker in workers._workers]
                started = time.monotonic()
                late = workers.compile([told["hang"]], until=started + 0.5)
                spent = time.monotonic() - started
            print(json.dumps({"reasons": reasons, "alive": alive, "late": len(late), "spent": spent}))
        """,
    )


def test_what_fails_crashes_or_hangs_is_reported_and_the_rest_is_compiled(outcomes):
    reasons = outcomes["reasons"]
    assert reasons["good"] == ""
    assert reasons["wrong"] != ""
    assert reasons["crash"] == "the compiler crashed (exit status 7)"
    assert reasons["hang"] == "compiling it took more than 8 s"
    assert all(outcomes["alive"])


def test_the_key_on_disk_is_that_of_the_launching_process(outcomes):
    """Triton 3.6 may give one kernel another key in every process."""
    assert outcomes["reasons"]["moody"] == "the key is launching"


def test_compiling_stops_when_time_is_up(outcomes):
    assert outcomes["late"] == 0
    assert outcomes["spent"] < 5.0


@pytest.fixture
def heard():
    """SIGINT as a terminal's programs have it: a shell's background ignores it, and children inherit."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups")
@pytest.mark.usefixtures("heard")
def test_ctrl_c_ends_the_compilers_without_a_word(tmp_path):
    text = """
    if __name__ == "__main__":
        try:
            with Compilers(2, TARGET) as workers:
                def done(count):
                    print("pids", *(worker.process.pid for worker in workers._workers), flush=True)

                made = launches("product", count=26) + launches("adjoint_product", count=26)
                workers.compile(wanted(made), done=done)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(**script(tmp_path, text), **pipes, start_new_session=True) as process:
        line = process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        started = time.monotonic()
        out, err = process.communicate(timeout=60)
    assert line.startswith("pids"), line + out + err
    assert out.splitlines()[-1] == "interrupted"
    assert err == ""
    assert time.monotonic() - started < 20
    for pid in map(int, line.split()[1:]):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_launches_that_need_the_same_binary_are_one_compilation():
    pytest.importorskip("triton")
    from projunn_kernels.tuning.compilers import compilation

    def of(size, rate=0.1, dtype=torch.float32, offset=0, **constants):
        tensor = torch.empty(64, dtype=dtype)[offset:]
        return compilation("kernel", (tensor, size, rate, None), {"BM": 4} | constants)

    assert of(1024) == of(4096, rate=0.7)  # multiples of 16
    assert of(1000) == of(7)
    different = [of(16), of(7), of(1), of(True), of(1 << 40), of(16, dtype=torch.int32), of(16, BM=8)]
    different.append(of(16, offset=1))  # not aligned to 16 bytes
    assert len(set(different)) == len(different)
