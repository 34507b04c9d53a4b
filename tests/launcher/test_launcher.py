"""What the library passes to Triton's launcher arrives at the CUDA driver as from Triton itself."""

import json
import os
import struct
import subprocess
import sys

import pytest

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    return printed("tests.launcher.job", str(tmp_path_factory.mktemp("driver")))


def printed(module, *arguments):
    """What a program prints that needs Triton's compiler, not its interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", module, *arguments]
    job = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert job.returncode == 0, job.stderr
    return json.loads(job.stdout)


def test_every_launch_is_of_the_binary_that_triton_would_choose():
    """Sizes, alignments and dtypes of steps and layers, through several of each."""
    launches = printed("tests.launcher.choices")
    assert launches["wrong"] == []
    assert 100 < launches["asked"] < launches["direct"] / 10


def bits(number):
    return struct.unpack("I", struct.pack("f", number))[0]


@pytest.mark.requires_cpp
def test_triton_is_asked_once(shown):
    _, *arrived = shown
    assert [launch["asked"] for launch in arrived] == [1] * 5 + [2] * 2
    assert [launch["made"] for launch in arrived] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.requires_cpp
def test_every_parameter_arrives(shown):
    """Addresses, a float, sizes; what is 1, a constant or an option is part of the binary."""
    addresses, first, *_ = shown
    assert first["values"] == [addresses["x"], addresses["y"], bits(0.3), 40, 2**33]
    assert (first["grid"], first["block"], first["stream"]) == ([3, 2, 1], 64, 4096)


@pytest.mark.requires_cpp
def test_launches_by_addresses_arrive_like_those_of_triton(shown):
    """What a call does not name is as it was in the first."""
    addresses, first, *others = shown[:6]
    changed = [{}, {}, {0: addresses["x"] + 128}, {2: bits(-2.0)}]
    for launch, change in zip(others, changed, strict=True):
        values = [change.get(place, value) for place, value in enumerate(first["values"])]
        assert launch == first | {"values": values, "made": launch["made"]}


@pytest.mark.requires_cpp
def test_launches_that_overlap_say_so(shown):
    """To the driver, Triton's own and those by addresses."""
    assert [launch["overlaps"] for launch in shown[1:]] == [0] * 5 + [1] * 2
