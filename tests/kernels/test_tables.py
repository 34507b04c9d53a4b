"""Tables of tuned configurations: what is written is read again, and nonsense is refused in words."""

import json
import multiprocessing
import warnings

import pytest

from projunn_kernels import files
from projunn_kernels.configs import tables
from projunn_kernels.configs.problem import Config, Device
from projunn_kernels.configs.tables import Entry, read_table, write_table

GPU = Device("Test GPU 9000", "9.0", 132, 232_448)
BUCKET = "rank_update/real/k1/64x64/b2"
ENTRY = Entry(Config(8, 64, 4), 0.5, 0.75, {"rank_update_kernel": "0123"})


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROJUNN_CACHE", str(tmp_path))


def file():
    return tables.cache_folder() / tables.table_name(GPU.name)


def content(**changes):
    """The JSON of a table with one entry, whose fields ``changes`` replace."""
    write_table(GPU, {BUCKET: ENTRY})
    whole = json.loads(file().read_text())
    whole["entries"][BUCKET] |= changes
    return whole


def config(**changes):
    return content(config={"rows": 8, "columns": 64, "warps": 4} | changes)


def test_what_is_written_is_read_again_with_its_versions():
    kept = Entry(None, 0.25, 0.25, {})
    never_ran = Entry(Config(1, 16, 1), 2.0, None, {})
    written = {BUCKET: ENTRY, "product/real/k1/64x64/b1": kept, "basis/complex/k2/64x64/b1": never_ran}
    path = write_table(GPU, written)
    table = read_table(path)
    assert dict(table.entries) == written
    assert (table.gpu, table.capability) == (GPU.name, GPU.capability)
    assert table.triton == (tables.triton_version() or "not installed")
    assert table.torch == __import__("torch").__version__
    assert sorted(one.name for one in tables.cache_folder().iterdir()) == ["tables.lock", path.name]


def test_entries_are_added_to_a_table_and_replace_their_own_kind():
    write_table(GPU, {BUCKET: ENTRY})
    write_table(GPU, {"product/real/k1/64x64/b1": ENTRY})
    again = Entry(None, 0.4, 0.4, {})
    table = read_table(write_table(GPU, {BUCKET: again}))
    assert dict(table.entries) == {BUCKET: again, "product/real/k1/64x64/b1": ENTRY}


def write_twenty(writer, ready):
    ready.wait()
    for i in range(20):
        write_table(GPU, {f"product/real/k1/{writer}x{i}/b1": ENTRY})


def test_processes_that_tune_at_once_lose_no_entry_of_each_other():
    spawned = multiprocessing.get_context("spawn")
    ready = spawned.Barrier(3)
    writers = [spawned.Process(target=write_twenty, args=(i, ready)) for i in range(3)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert not any(one.exitcode for one in writers)
    wanted = {f"product/real/k1/{writer}x{i}/b1" for writer in range(3) for i in range(20)}
    assert set(read_table(file()).entries) == wanted


def test_a_table_is_written_where_files_cannot_be_locked(monkeypatch):
    def none(opened):
        raise OSError("no locks available")

    with monkeypatch.context() as here:
        here.setattr(files, "_lock", none)
        write_table(GPU, {BUCKET: ENTRY})
    lock = tables.cache_folder() / "tables.lock"
    lock.unlink()
    lock.mkdir()  # cannot be opened, as that of another user
    write_table(GPU, {"product/real/k1/64x64/b1": ENTRY})
    assert set(read_table(file()).entries) == {BUCKET, "product/real/k1/64x64/b1"}


def test_the_home_folder_in_the_name_of_the_cache_is_found(tmp_path, monkeypatch):
    """It was a folder called ~ in the present one."""
    monkeypatch.setenv("PROJUNN_CACHE", "~/kept")
    monkeypatch.setattr("os.path.expanduser", lambda path: path.replace("~", str(tmp_path)))
    assert write_table(GPU, {BUCKET: ENTRY}).parent == tmp_path / "kept"


NONSENSE = {
    "no object": (lambda: [], "no JSON object with entries"),
    "no entries": (lambda: {"format": tables.FORMAT}, "no JSON object with entries"),
    "an earlier format": (lambda: content() | {"format": 1}, "format is 1, this version reads 2"),
    "no GPU": (lambda: content() | {"gpu": None}, "gpu is None, not a string"),
    "a Triton that is a number": (lambda: content() | {"triton": 3.6}, "triton is 3.6, not a string"),
    "a list of entries": (lambda: content() | {"entries": []}, "entries is no JSON object"),
    "an entry that is a number": (lambda: content() | {"entries": {BUCKET: 1}}, "is no JSON object"),
    "no configuration of that kind": (lambda: content(config={"rows": 3}), "wanted an object with"),
    "a configuration that is a list": (lambda: content(config=[8, 64, 4]), "wanted an object with"),
    "an unknown field": (lambda: config(threads=8), "wanted an object with"),
    "2 to the 40 rows": (lambda: config(rows=2**40), "rows is 1099511627776, not a whole number from 1"),
    "no rows": (lambda: config(rows=0), "rows is 0"),
    "negative columns": (lambda: config(columns=-64), "columns is -64"),
    "rows that are no power of two": (lambda: config(rows=7), "rows is 7, not a power of two"),
    "rows that are a float": (lambda: config(rows=8.0), "rows is 8.0, not a whole number"),
    "rows that are true": (lambda: config(rows=True), "rows is True, not a whole number"),
    "nested rows": (lambda: config(rows=[8]), r"rows is \[8\], not a whole number"),
    "a tile beyond Triton's": (lambda: config(rows=65536, columns=65536), "too large a tile"),
    "1024 warps": (lambda: config(warps=1024), "warps is 1024, not a whole number from 1 to 32"),
    "a depth that is a word": (lambda: config(depth="x"), "depth is 'x'"),
    "no depth": (lambda: config(depth=None), "depth is None"),
    "99 stages": (lambda: config(stages=99), "stages is 99"),
    "hold that is a number": (lambda: config(hold=1), "hold is 1, not true or false"),
    "overlap that is a word": (lambda: config(overlap="x"), "overlap is 'x', not true or false"),
    "no time": (lambda: content(ms=None), "ms is None, not a number"),
    "a time that is not a number": (lambda: content(ms=float("nan")), "ms is nan"),
    "an infinite time": (lambda: content(closed_form_ms=float("inf")), "closed_form_ms is inf"),
    "a time beyond floats": (lambda: content(ms=10**400), "ms is 1000"),
    "a negative time": (lambda: content(ms=-1.0), "ms is -1.0"),
    "no fingerprints": (lambda: content(kernels=None), "no fingerprints"),
    "fingerprints that are numbers": (lambda: content(kernels={"a": 1}), "no fingerprints"),
}  # fmt: skip


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_refused_in_words_and_replaced_with_a_warning(kind):
    make, words = NONSENSE[kind]
    file().write_text(json.dumps(make()))
    with pytest.raises(ValueError, match=words):
        read_table(file())
    with pytest.warns(UserWarning, match=f"tuning table replaced: .*{words}"):
        write_table(GPU, {BUCKET: ENTRY})
    assert dict(read_table(file()).entries) == {BUCKET: ENTRY}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "Expecting property name"),
        (b"", "Expecting value"),
        (b"\xff\xfe\x00", "utf"),
        (b"[" * 200_000, "nested too deeply"),
        (b" " * (17 << 20), "more than 16 MiB"),
        (b'{"entries": ' + b"9" * 5000 + b"}", "digits"),
    ],
    ids=["cut off", "empty", "not text", "nested", "large", "a long number"],
)
def test_a_file_that_is_no_json_is_refused(text, words):
    file().write_bytes(text)
    with pytest.raises(ValueError, match=words):
        read_table(file())


def test_bounds_are_within_what_is_accepted():
    largest = Config(1, 65536, 32, hold=True, depth=4096, stages=8)
    write_table(GPU, {BUCKET: Entry(largest, 1e-6, None, {})})
    assert read_table(file()).entries[BUCKET].config == largest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"triton": "0.1"}, "made with triton 0.1, this is"),
        ({"gpu": "Another"}, "measured on Another"),
        ({"capability": "8.0"}, r"measured on Test GPU 9000 \(8.0\)"),
    ],
)
def test_a_table_of_another_triton_or_gpu_is_started_anew(change, words):
    write_table(GPU, {"product/real/k1/64x64/b1": ENTRY})
    file().write_text(json.dumps(json.loads(file().read_text()) | change))
    with pytest.warns(UserWarning, match=words):
        write_table(GPU, {BUCKET: ENTRY})
    assert set(read_table(file()).entries) == {BUCKET}


def test_tables_that_ship_can_be_read():
    shipped = [one for one in tables.shipped_folder().iterdir() if one.name.endswith(".json")]
    for one in shipped:
        table = read_table(one)
        assert one.name == tables.table_name(table.gpu)
        for bucket, entry in table.entries.items():
            assert entry.config is not None, bucket
            assert entry.kernels, bucket
            assert entry.closed_form_milliseconds * 0.98 >= entry.milliseconds, bucket


def test_writing_leaves_no_file_behind_when_it_fails(monkeypatch):
    write_table(GPU, {BUCKET: ENTRY})
    before = file().read_text()
    monkeypatch.setattr(tables, "_written", lambda entry: {"ms": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        write_table(GPU, {BUCKET: ENTRY})
    assert file().read_text() == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_table(file())
    assert sorted(one.name for one in tables.cache_folder().iterdir()) == ["tables.lock", file().name]
