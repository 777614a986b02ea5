"""Jobs on devices that die, stall and come back: nothing is lost, and nobody stays behind."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from nmcompile.devices import Address, DeviceServer, Job, run_jobs
from nmcompile.devices.tracker import LOOPBACK
from nmcompile.errors import DeviceError, InputError
from tests.support.device_handlers import kill
from tests.support.waiting import eventually

HANDLER = "tests.support.device_handlers:handle"


@pytest.fixture(scope="module")
def pair(tracker: Address) -> Iterator[list[DeviceServer]]:
    """Two devices with the key "pair", for jobs that do them no harm."""
    with devices(tracker, "pair", 2) as servers:
        yield servers


@contextlib.contextmanager
def devices(tracker: Address, key: str, count: int) -> Iterator[list[DeviceServer]]:
    """Servers that are registered."""
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(DeviceServer(key, port=0, tracker=tracker, handler=HANDLER))
            for _ in range(count)
        ]
        yield servers


def name_of(server: DeviceServer) -> str:
    return f"{LOOPBACK}:{server.port}"


def test_every_job_is_answered_by_a_device(
    tracker: Address, pair: list[DeviceServer], tmp_path: Path
) -> None:
    sent = tmp_path / "sent"
    sent.write_bytes(b"weights" * 100_000)
    jobs = [
        Job(
            f"job {i}",
            {"do": "copy", "number": i, "sleep": 0.1},
            {"sent": sent},
            {"copied": tmp_path / str(i)},
        )
        for i in range(6)
    ]
    outcomes = list(run_jobs(tracker, "pair", jobs))
    assert {outcome.job for outcome in outcomes} == set(jobs)
    assert {outcome.device for outcome in outcomes} == set(map(name_of, pair))
    for outcome in outcomes:
        assert outcome.error is None and outcome.failures == ()
        assert outcome.response is not None
        copied = tmp_path / str(outcome.response["number"])
        assert copied.read_bytes() == sent.read_bytes()


def test_error_of_a_job_is_its_answer(tracker: Address, pair: list[DeviceServer]) -> None:
    (outcome,) = run_jobs(tracker, "pair", [Job("one", {"do": "fail"})])
    assert outcome.response is None
    assert outcome.error == "this device lacks avx1024"
    assert outcome.failures == ()


def is_at_work(server: DeviceServer, started: Path, done: set[int]) -> bool:
    """Whether one of its processes has begun a job whose answer is not known yet."""
    processes = psutil.Process(server.pid).children(recursive=True)
    return any(p.pid not in done and (started / str(p.pid)).exists() for p in processes)


def test_killed_server_loses_nothing(tracker: Address, tmp_path: Path) -> None:
    jobs = [
        Job(f"job {i}", {"sleep": 0.5, "number": i, "started": str(tmp_path)}) for i in range(8)
    ]
    with devices(tracker, "kill", 2) as servers:
        outcomes = []
        for outcome in run_jobs(tracker, "kill", jobs):
            outcomes.append(outcome)
            if len(outcomes) == 1 and outcome.response is not None:
                victim = next(s for s in servers if name_of(s) == outcome.device)
                done = {int(outcome.response["pid"])}
                eventually(partial(is_at_work, victim, tmp_path, done), "at its next job")
                kill(victim)
                killed = outcome.device
    assert sorted(o.response["number"] for o in outcomes if o.response) == list(range(8))
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    assert [failure.device for failure in failures] == [killed]
    assert "the connection broke" in failures[0].reason


def test_crashed_session_is_retried_and_the_server_replaced(
    tracker: Address, tmp_path: Path
) -> None:
    with devices(tracker, "crash", 1) as (server,):
        stop = threading.Event()
        watch = threading.Thread(target=server.watch, args=(stop,))
        watch.start()
        job = Job("one", {"do": "crash once", "mark": str(tmp_path / "crashed")})
        (outcome,) = run_jobs(tracker, "crash", [job], patience=30.0)
        stop.set()
        watch.join()
    assert outcome.error is None
    assert len(outcome.failures) == 1


def test_stalled_job_is_ended_and_given_up(tracker: Address) -> None:
    jobs = [Job("hangs", {"do": "hang"}), Job("works", {"number": 1})]
    with devices(tracker, "hang", 1):
        outcomes = {o.job.name: o for o in run_jobs(tracker, "hang", jobs, timeout=4, attempts=2)}
    assert outcomes["works"].error is None
    hung = outcomes["hangs"]
    assert hung.response is None and hung.error is not None
    assert "gave up after 2 attempts" in hung.error and "more than 4 s" in hung.error
    assert len(hung.failures) == 2


def test_frozen_device_does_not_hold_up_the_others(tracker: Address) -> None:
    jobs = [Job(f"job {i}", {"sleep": 0.2, "number": i}) for i in range(8)]
    with devices(tracker, "frozen", 2) as servers:
        frozen: list[psutil.Process] = []
        outcomes = []
        for outcome in run_jobs(tracker, "frozen", jobs, timeout=5):
            outcomes.append(outcome)
            if not frozen:
                process = psutil.Process(servers[0].pid)
                frozen = [process, *process.children(recursive=True)]
                for process in frozen:
                    process.suspend()
        for process in frozen:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
    assert sorted(o.response["number"] for o in outcomes if o.response) == list(range(8))


def test_jobs_are_given_up_when_no_device_is_left(tracker: Address) -> None:
    jobs = [Job(f"job {i}", {"sleep": 0.3}) for i in range(4)]
    with devices(tracker, "none", 1) as (server,):
        outcomes = []
        for outcome in run_jobs(tracker, "none", jobs, patience=1.0):
            outcomes.append(outcome)
            server.close()
    assert len(outcomes) == 4
    assert outcomes[0].error is None
    assert all(o.error and "no device with the key 'none' is left" in o.error for o in outcomes[1:])


def drain(tracker: Address, key: str, job: Job) -> None:
    list(run_jobs(tracker, key, [job], attempts=1))


def test_nothing_is_left_after_a_stop(tracker: Address) -> None:
    before = set(psutil.Process().children(recursive=True))
    with devices(tracker, "stop", 2):
        job = Job("long", {"sleep": 60})
        waiting = threading.Thread(
            target=lambda: list(run_jobs(tracker, "stop", [job], attempts=1))
        )
        waiting.start()
        started: set[psutil.Process] = set()

        def has_session() -> bool:
            started.update(set(psutil.Process().children(recursive=True)) - before)
            return len(started) > 2

        eventually(has_session, "a session has a process of its own")
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
    waiting.join(timeout=30)
    assert not waiting.is_alive()


def test_processes_end_with_a_killed_parent(tracker: Address) -> None:
    with devices(tracker, "orphan", 1) as (server,):
        process = psutil.Process(server.pid)
        job = Job("long", {"sleep": 60})
        threading.Thread(target=drain, args=(tracker, "orphan", job), daemon=True).start()
        eventually(lambda: bool(process.children()), "a session has a process of its own")
        children = process.children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


def test_unknown_tracker_and_key_are_named(tracker: Address) -> None:
    with pytest.raises(DeviceError, match=r"no tracker answers at 127\.0\.0\.1:1 "):
        run_jobs(Address(LOOPBACK, 1), "any", [])
    with pytest.raises(DeviceError, match="has no device with the key 'nobody'"):
        run_jobs(tracker, "nobody", [])
    with pytest.raises(DeviceError, match="no tracker answers"):
        DeviceServer("any", port=0, tracker=Address(LOOPBACK, 1))


def test_taken_port_is_named(tracker: Address) -> None:
    with DeviceServer("port", port=0) as server:
        with pytest.raises(DeviceError, match=f"cannot listen on 127.0.0.1:{server.port}"):
            DeviceServer("port", port=server.port)


@pytest.mark.parametrize("text", ["", "host", "host:", ":90", "host:http", "host:70000"])
def test_addresses_are_checked(text: str) -> None:
    with pytest.raises(InputError, match="expected HOST:PORT"):
        Address.parse(text)
