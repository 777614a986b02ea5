"""A bounded store that several programs share, also with such as are killed."""

import hashlib
import os
import subprocess
import sys
import warnings
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmcompile.cache import Cache, find_folder
from tests.support.examples import examples

WRITERS = """
import sys
from pathlib import Path
from nmcompile.cache import Cache
cache = Cache(sys.argv[1], 20_000)
for round in range(10):
    for key in "abcdefgh":
        cache.write(key, key.encode() * (1000 + 100 * round))
        found = cache.read(key)
        assert found is None or set(found) == set(key.encode()), key
"""
KILLED = """
import os, signal, sys
from pathlib import Path
from nmcompile.cache import Cache, store
def pieces(path):
    yield b"half"
    os.kill(os.getpid(), signal.SIGKILL)
store._pieces = pieces
Cache(sys.argv[1]).add("key", Path(sys.argv[2]))
"""


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_was_kept_is_found_by_another_store(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    first = Cache(tmp_path / "cache")
    assert first.path("key") is None
    kept = first.add("key", source)
    first.write("other", b"")
    source.unlink()
    second = Cache(tmp_path / "cache")
    assert second.path("key") == kept and kept.read_bytes() == b"content"
    assert second.read("key") == b"content"
    assert second.read("other") == b""
    assert second.read("kex") is None


@pytest.mark.parametrize("damage", [b"contenT", b"conten", b""])
@pytest.mark.parametrize("look", [Cache.read, Cache.path])
def test_a_damaged_entry_is_absent_and_gone(look: object, damage: bytes, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.write("key", b"content")
    (entry,) = files(tmp_path)
    entry.write_bytes(damage)
    assert callable(look) and look(cache, "key") is None
    assert files(tmp_path) == []
    cache.write("key", b"content")
    assert cache.read("key") == b"content"


operations = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.one_of(st.none(), st.integers(0, 120))), max_size=30
)


@examples(40)
@given(operations)
def test_it_holds_what_was_used_last(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int | None]]
) -> None:
    folder, limit = tmp_path_factory.mktemp("cache"), 100
    cache, model = Cache(folder, limit), OrderedDict[str, bytes]()
    now = 10**18
    for index, (key, size) in enumerate(steps):
        if size is None:
            assert cache.read(key) == model.get(key)
        else:
            content = bytes([index]) * size
            if size > limit:
                cache.write(key, content)
                continue
            for path in files(folder):  # one content for each key, so that the model is a dict
                if path.name.startswith(hashlib.sha256(key.encode()).hexdigest()):
                    path.unlink()
            cache.write(key, content)
            model[key] = content
        if key in model:
            model.move_to_end(key)
            # File systems' clocks are too coarse to tell one operation from the next.
            used = cache.path(key)
            assert used is not None
            os.utime(used, ns=(now + index, now + index))
        while sum(map(len, model.values())) > limit:
            model.popitem(last=False)
        assert sorted(path.read_bytes() for path in files(folder)) == sorted(model.values())


def test_programs_that_write_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITERS, str(tmp_path)]
    running = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    Cache(tmp_path, 20_000).write("last", b"one more, which counts them")
    found = files(tmp_path)
    assert 0 < sum(path.stat().st_size for path in found) <= 20_000
    assert not [path for path in found if path.suffix == ".tmp"]


def test_threads_share_a_store(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: cache.write(str(n % 7), b"%d" % (n % 7) * 100), range(200)))
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 1000
    assert all(cache.read(str(n)) in (None, b"%d" % n * 100) for n in range(7))


def test_what_a_killed_writer_left_is_neither_found_nor_kept(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "cache"
    source.write_bytes(b"half and half")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, folder, source], check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == -9 and len(files(folder)) == 1
    cache = Cache(folder)
    assert cache.read("key") is None
    cache.write("other", b"x")
    assert [path.read_bytes() for path in files(folder)] == [b"x"]


def test_the_environment_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NMCOMPILE_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert find_folder() == tmp_path / "xdg" / "nmcompile"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert find_folder() == tmp_path / ".cache" / "nmcompile"
    monkeypatch.setenv("NMCOMPILE_CACHE", str(tmp_path / "own"))
    Cache().write("key", b"x")
    assert len(files(tmp_path / "own")) == 1
    assert Cache(tmp_path / "named").path("key") is None
    assert list(tmp_path.iterdir()) == [tmp_path / "own"]


@pytest.mark.parametrize("off", ["0", "off", "OFF"])
def test_it_can_be_off(off: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NMCOMPILE_CACHE", off)
    (tmp_path / "source").touch()
    for cache in (Cache(), Cache(off)):
        assert not cache
        assert cache.add("key", tmp_path / "source") == tmp_path / "source"
        assert cache.path("key") is None
    assert list(tmp_path.iterdir()) == [tmp_path / "source"]


def _file(path: Path) -> None:
    path.touch()


def _open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


@pytest.mark.parametrize(
    ("make", "reason"), [(_file, "File exists"), (_open_to_all, "other users can write to it")]
)
def test_a_folder_that_is_no_good_is_none_with_one_warning(
    make: object, reason: str, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    assert callable(make)
    make(folder)
    before = files(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            cache = Cache(folder)
            cache.write("key", b"x")
            cache.write("key", b"x")
            assert cache.read("key") is None
            assert not cache
    (warning,) = caught
    assert f"nothing is cached in {folder}: {reason}; NMCOMPILE_CACHE" in str(warning.message)
    assert files(tmp_path) == before


def test_nobody_else_may_read_what_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    Cache(folder).write("key", b"x")
    assert folder.stat().st_mode & 0o777 == 0o700
