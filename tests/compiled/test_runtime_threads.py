"""Sessions, threads and processes: who runs what, what stays behind, closing, forking."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nmcompile.errors import InputError
from nmcompile.runtime import Session, crew, load, native, write_artifact
from nmcompile.runtime.compiled import Compiled
from tests.support.manifests import SHAPE, manifest
from tests.support.runtime_models import affine_library

pytestmark = pytest.mark.alone  # it is about threads and cores

ROOT = Path(__file__).parents[2]
RANDOM = np.random.default_rng(0)
SCALE, SHIFT = (RANDOM.standard_normal(SHAPE, np.float32) for _ in range(2))

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("affine")
    write_artifact(
        folder / "affine.nmc", manifest(), affine_library(folder), {"w": SCALE, "b": SHIFT}
    )
    return folder / "affine.nmc"


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)
    return iter(())


def random_input() -> Array:
    return RANDOM.standard_normal(SHAPE, np.float32)


def right(session: Session, x: Array) -> bool:
    wanted = x.astype(np.float64) * SCALE + 2 * SHIFT.astype(np.float64)
    return np.allclose(session.run(x)["y"], wanted, rtol=1e-5, atol=1e-5)


def in_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def watch(session: Session, seen: list[int]) -> None:
    """Note the size of the pool that the next run is given."""
    assert session._loaded is not None
    (loaded,) = session._loaded
    assert isinstance(loaded, Compiled)
    (entry,) = loaded.idle

    def watched(*arguments: Any) -> Any:
        seen.append(native.native_runtime().num_threads())
        return entry(*arguments)

    loaded.idle[:] = [watched]


def system_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def wait_for(condition: Callable[[], bool]) -> bool:
    """Until it holds; what ends a pool spins for a while first."""
    for _ in range(2400):
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("threads", [1, 2])
def test_many_threads_share_a_session(path: Path, threads: int) -> None:
    barrier = threading.Barrier(6)
    session = load(path, threads=threads)

    def work(seed: int) -> bool:
        random = np.random.default_rng(seed)
        barrier.wait()
        return all(right(session, random.standard_normal(SHAPE, np.float32)) for _ in range(100))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(("asked", "used"), [(None, 4), (2, 2), (3, 3), (4, 4)])
@pytest.mark.parametrize("main", [False, True], ids=["other thread", "main thread"])
def test_a_run_uses_the_threads_asked_for(
    path: Path, asked: int | None, used: int, main: bool
) -> None:
    session, seen = load(path, threads=asked), list[int]()
    watch(session, seen)

    def work() -> Any:
        return session.run(random_input())

    work() if main else in_thread(work)
    assert seen == [used]


@pytest.mark.usefixtures("four_cores")
def test_sessions_of_different_sizes_alternate_in_one_thread(path: Path) -> None:
    two, three = load(path, threads=2), load(path, threads=3)
    seen: list[int] = []

    def work() -> None:
        for session in (three, two, three):
            watch(session, seen)
            session.run(random_input())

    in_thread(work)
    assert seen == [3, 2, 3, 3]  # the third run is watched twice


@pytest.mark.usefixtures("four_cores")
def test_the_environment_can_lower_the_default(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", "2")
    assert load(path).threads == 2


@pytest.mark.usefixtures("four_cores")
def test_more_threads_than_cores_are_clamped_with_a_warning(path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="may use 4 cores, not 5"):
        assert load(path, threads=5).threads == 4


def test_results_are_the_same_bits_in_every_thread(path: Path) -> None:
    x = random_input()
    with load(path, threads=1) as one, load(path, threads=2) as two:
        wanted = one.run(x)["y"]
        for session in (one, two):
            np.testing.assert_array_equal(session.run(x)["y"], wanted)
            with ThreadPoolExecutor(1) as pool:
                np.testing.assert_array_equal(pool.submit(session.run, x).result()["y"], wanted)


@pytest.mark.parametrize("threads", [1, 2])
def test_short_lived_threads_leave_nothing(path: Path, threads: int) -> None:
    with load(path, threads=threads) as session:
        x = random_input()
        in_thread(lambda: session.run(x))
        before = system_threads()
        for _ in range(50):
            in_thread(lambda: session.run(x))
        assert wait_for(lambda: system_threads() <= before)


def test_workers_end_after_the_last_session_of_their_size(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "LINGER", 0.05)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    before = system_threads()
    sessions = [load(path, threads=7), load(path, threads=7)]
    assert in_thread(lambda: right(sessions[0], random_input()))
    sessions.pop(0).close()
    assert system_threads() > before
    assert in_thread(lambda: right(sessions[0], random_input()))
    sessions.clear()  # as good as closed
    assert wait_for(lambda: system_threads() <= before)
    with load(path, threads=7) as third:
        assert in_thread(lambda: right(third, random_input()))


def test_an_error_in_a_worker_reaches_the_caller(path: Path) -> None:
    with load(path, threads=2) as session:
        assert session._loaded is not None

        def fail(*arguments: Any) -> Any:
            raise KeyError("something")

        assert isinstance(session._loaded[0], Compiled)
        session._loaded[0].idle[:] = [fail]
        with pytest.raises(Exception, match="something"):
            in_thread(lambda: session.run(random_input()))
        assert in_thread(lambda: right(session, random_input()))


@pytest.mark.parametrize("use", ["run", "profile", "bench"])
def test_a_closed_session_does_not_run(path: Path, use: str) -> None:
    with load(path) as session:
        session.run(random_input())
    with pytest.raises(InputError, match="closed"):
        getattr(session, use)(random_input())
    session.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_closing_while_others_run_is_right_or_refused(path: Path, threads: int) -> None:
    for _ in range(10):
        session, barrier = load(path, threads=threads), threading.Barrier(4)

        def work(session: Session = session, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                for _ in range(10_000):
                    assert right(session, random_input())
            except InputError as error:
                return "closed" in str(error)
            return False

        with ThreadPoolExecutor(3) as pool:
            done = [pool.submit(work) for _ in range(3)]
            barrier.wait()
            time.sleep(0.01)
            session.close()
            assert all(future.result() for future in done)


def test_a_closed_session_leaves_no_mapping(path: Path) -> None:
    def mapped() -> int:
        with open("/proc/self/maps") as file:
            return sum("lib.so" in line or str(path) in line for line in file)

    before = mapped()
    with load(path, threads=1) as session:
        assert right(session, random_input())
        assert mapped() > before
    del session
    assert mapped() == before


def fresh(code: str, *arguments: object) -> str:
    """What a new Python prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


FORK = """
import os, sys, threading
import numpy as np
from nmcompile.errors import DeviceError
from nmcompile.runtime import load
x = np.ones((8, 16), np.float32)
session = load(sys.argv[1], threads=int(sys.argv[2]))
wanted = session.run(x)["y"]
other = threading.Thread(target=session.run, args=(x,))
other.start()
other.join()
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_session_works_in_a_forked_process(path: Path, threads: int) -> None:
    code = (
        FORK
        + """
if os.fork() == 0:
    for _ in range(3):
        assert (session.run(x)["y"] == wanted).all()
    with load(sys.argv[1], threads=2) as another:
        assert (another.run(x)["y"] == wanted).all()
    session.close()
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]), (session.run(x)["y"] == wanted).all())
"""
    )
    assert fresh(code, path, threads) == "7 True\n"


def test_a_process_forked_during_a_run_says_that_it_cannot_run(path: Path) -> None:
    code = (
        FORK
        + """
begun, end = threading.Event(), threading.Event()
def wait(*arguments):
    begun.set()
    end.wait()
entry = session._loaded[0].idle.pop()
session._loaded[0].idle.append(wait)
threading.Thread(target=session.run, args=(x,), daemon=True).start()
begun.wait()
if os.fork() == 0:
    for use in (lambda: session.run(x), lambda: load(sys.argv[1])):
        try:
            use()
        except DeviceError as error:
            print(error, flush=True)
    os._exit(0)
os.wait()
os._exit(0)
"""
    )
    said = fresh(code, path, 2).splitlines()
    assert len(said) == 2
    assert all("was forked while another thread was running" in line for line in said)


def test_an_interrupt_leaves_the_session_in_order(path: Path) -> None:
    code = (
        FORK
        + """
import _thread, signal
# What runs in the background of a shell ignores interrupts, and so would its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
begun, end = threading.Event(), threading.Event()
entry = session._loaded[0].idle.pop()
def slow(*arguments):
    begun.set()
    end.wait(5)
    return entry(*arguments)
session._loaded[0].idle.append(slow)
import nmcompile.runtime.crew as crew
crew._home = None  # the main thread hands over too
def interrupt():
    begun.wait()
    _thread.interrupt_main()
    end.wait(1)  # for the main thread to wake up, on a machine that is busy too
    end.set()
threading.Thread(target=interrupt).start()
try:
    session.run(x)
except KeyboardInterrupt:
    print("interrupted")
for _ in range(3):
    assert (session.run(x)["y"] == wanted).all()
"""
    )
    assert fresh(code, path, 2) == "interrupted\n"
