"""The atlas: what goes in comes out, and nothing damaged, foreign or half-written is believed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from neuropolis.neurons.atlas import HEADER_BYTES, Atlas, Record, check_target, decode, write_atlas
from neuropolis.neurons.errors import AtlasError
from neuropolis.neurons.sets import NeuronSet

SUBJECT = {"fingerprint": "abc", "name": "toy"}
FIRST = Record(
    "thing", "one", {"x": np.arange(6.0).reshape(2, 3), "flags": np.array([True, False])}, {"why": "é", "n": [1]}
)
SECOND = Record("thing", "two", {"long": np.arange(5000)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_atlas(tmp_path / "study.h5", [FIRST, SECOND], subject=SUBJECT)


def test_what_goes_in_comes_out(path: Path) -> None:
    with Atlas(path) as atlas:
        assert atlas.subject == SUBJECT
        assert atlas.records == (("thing", "one"), ("thing", "two"))
        assert atlas.names("thing") == ("one", "two")
        assert atlas.names("other") == ()
        assert atlas.versions["numpy"] == np.__version__
        for record in (FIRST, SECOND):
            found = atlas.record(*record.key)
            assert found.meta == record.meta
            assert list(found.arrays) == list(record.arrays)
            for name, array in record.arrays.items():
                assert found.arrays[name].dtype == array.dtype
                np.testing.assert_array_equal(found.arrays[name], array)


def test_metadata_may_be_long(tmp_path: Path) -> None:
    record = Record("thing", "long", meta={"ids": [f"example/{i}" for i in range(20_000)]})
    with Atlas(write_atlas(tmp_path / "a.h5", [record])) as atlas:
        assert atlas.record("thing", "long").meta == record.meta


def test_adding_keeps_the_others_and_replaces_the_same(path: Path) -> None:
    changed, third = Record("thing", "two", {"long": np.zeros(2)}), Record("other", "one", meta={"a": 1})
    write_atlas(path, [changed, third])
    with Atlas(path) as atlas:
        assert set(atlas.records) == {("thing", "one"), ("thing", "two"), ("other", "one")}
        np.testing.assert_array_equal(atlas.record("thing", "one").arrays["x"], FIRST.arrays["x"])
        np.testing.assert_array_equal(atlas.record("thing", "two").arrays["long"], np.zeros(2))
        assert atlas.subject == SUBJECT


def test_another_subject_is_refused(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(AtlasError, match=r"is about subject abc \(toy\), not xyz \(big\); write to another file"):
        write_atlas(path, [FIRST], subject={"fingerprint": "xyz", "name": "big"})
    assert path.read_bytes() == before


def test_every_flipped_bit_of_the_header_is_found(path: Path) -> None:
    header = path.read_bytes()[:HEADER_BYTES]
    with open(path, "r+b", buffering=0) as raw:
        for bit in range(HEADER_BYTES * 8):
            damaged = bytearray(header)
            damaged[bit // 8] ^= 1 << bit % 8
            raw.seek(0)
            raw.write(damaged)
            assert refused(path), f"bit {bit} of the header"


def test_flipped_bits_of_the_body_are_found(path: Path) -> None:
    whole, dice = path.read_bytes(), random.Random(0)
    for bit in dice.sample(range(HEADER_BYTES * 8, len(whole) * 8), 200):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(AtlasError, match="is damaged: its checksum does not match; restore it from a copy"):
            Atlas(path)


def test_a_missing_or_extra_tail_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for length in [*range(20), *random.Random(1).sample(range(20, len(whole)), 30), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert refused(path), f"{length} of {len(whole)} bytes"
    path.write_bytes(whole[:-1])
    with pytest.raises(AtlasError, match=rf"has {len(whole) - 1} bytes and should have {len(whole)} \(truncated\)"):
        Atlas(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(AtlasError, match="overgrown"):
        Atlas(path)


def refused(path: Path) -> bool:
    try:
        Atlas(path).close()
    except AtlasError as error:
        return "\n" not in str(error) and ("damaged" in str(error))
    return False


def test_another_file_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "notes.h5"
    path.write_text("my notes")
    for action in (lambda: Atlas(path), lambda: write_atlas(path, [FIRST])):
        with pytest.raises(AtlasError, match=r"notes.h5 is not a neuropolis atlas"):
            action()
    assert path.read_text() == "my notes"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_missing_is_said(path: Path, tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match=r"no atlas at .*nothing.h5; make one with 'neuropolis locate'"):
        Atlas(tmp_path / "nothing.h5")
    with pytest.raises(AtlasError, match=f"there is no folder {tmp_path / 'no'}; make it first"):
        write_atlas(tmp_path / "no" / "a.h5", [FIRST])
    with Atlas(path) as atlas, pytest.raises(AtlasError, match=r"has no set 'x'; it has \['thing one', 'thing two'\]"):
        atlas.record("set", "x")
    assert check_target(tmp_path / "new.h5") == {}


def test_an_unknown_kind_is_named(path: Path) -> None:
    assert NeuronSet  # whose file registers the kind 'set'
    with pytest.raises(AtlasError, match=r"holds a 'thing', which this version cannot read; it knows \[.*'set'"):
        decode(FIRST)
    with Atlas(path) as atlas, pytest.raises(AtlasError, match="holds a 'thing'"):
        list(atlas.all("thing"))


@pytest.mark.parametrize("error", [OSError("disk full"), RuntimeError("unable\nto flush"), ValueError("bad")])
def test_an_error_while_writing_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import h5py

    whole = path.read_bytes()
    close = h5py.File.close

    def failing(file: h5py.File) -> None:
        written = bool(file) and file.mode == "r+"
        close(file)
        if written:
            raise error

    monkeypatch.setattr(h5py.File, "close", failing)
    with pytest.raises(
        AtlasError,
        match=rf"could not write {path}: {' '.join(str(error).split())}; what stood there before is untouched",
    ):
        write_atlas(path, [Record("thing", "three")])
    monkeypatch.undo()
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_stored_leaves_the_old_file(path: Path) -> None:
    whole = path.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_atlas(path, [Record("thing", "three", meta={"bad": object()})])
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


FULL_DISK = """
import resource, signal, sys
import numpy as np
from neuropolis.neurons.atlas import Record, write_atlas
from neuropolis.neurons.errors import AtlasError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    write_atlas(sys.argv[1], [Record("big", "one", {"x": np.random.default_rng(0).random(100_000)})])
except AtlasError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file size are POSIX")
@pytest.mark.parametrize("limit", [100, 1_000, 20_000, 500_000])
def test_a_full_disk_is_one_line_and_the_old_file_stands(path: Path, limit: int) -> None:
    whole = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path, str(limit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.startswith(f"could not write {path}: ")
    assert "Is the disk full or read-only?" in done.stdout
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


WRITING = """
import sys
import numpy as np
from neuropolis.neurons.atlas import Record, write_atlas
for turn in range(100_000):
    write_atlas(sys.argv[1], [Record("turn", "now", {"x": np.full(300_000, turn)})])
    print(turn, flush=True)
"""


@pytest.mark.parametrize("seed", range(2))
def test_a_kill_leaves_the_old_or_the_new_file(path: Path, seed: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITING, path], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "0\n"
        time.sleep(random.Random(seed).random() / 10)
        child.send_signal(signal.SIGKILL)
        last = int(([0, *child.stdout.read().split()])[-1])
    with Atlas(path) as atlas:
        assert set(atlas.records) == {*(("thing", name) for name in ("one", "two")), ("turn", "now")}
        found = atlas.record("turn", "now").arrays["x"]
    assert found[0] in (last, last + 1)
    assert (found == found[0]).all()


KILLED_AT_EVERY_LINE = """
import os, signal, sys
from pathlib import Path
import numpy as np
from neuropolis.neurons.atlas import Atlas, Record, write_atlas

path = Path(sys.argv[1])
old = path.read_bytes()
new = Record("thing", "two", {"long": np.ones(2000)})
lines = 0

def write(until):
    global lines
    lines = 0

    def count(frame, event, arg):
        global lines
        lines += event == "line"
        if lines == until:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    sys.settrace(count)
    write_atlas(path, [new])
    sys.settrace(None)

write(None)  # what is loaded and cached once
path.write_bytes(old)
write(None)
total = lines
found = {"old": 0, "new": 0}
for until in [*range(1, total - 120, total // 40), *range(total - 120, total)]:
    path.write_bytes(old)
    child = os.fork()
    if child == 0:
        write(until)
        os._exit(3)
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, status
    with Atlas(path) as atlas:
        assert atlas.records == (("thing", "one"), ("thing", "two"))
        found["new" if (atlas.record("thing", "two").arrays["long"] == 1).all() else "old"] += 1
print(min(found.values()) >= 10, found)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_line_leaves_the_old_or_the_new_file(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_AT_EVERY_LINE, path], capture_output=True, text=True)
    assert (done.stdout[:5], done.stderr) == ("True ", "")


def test_nowhere_to_write_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(**_: object) -> Callable[[], None]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", denied)
    with pytest.raises(AtlasError, match=r"could not write .*a\.h5: .*Permission denied"):
        write_atlas(tmp_path / "a.h5", [FIRST])
