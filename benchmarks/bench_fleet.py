"""Schedules many jobs on simulated devices, and says how long the devices stood idle.

    python -m benchmarks.bench_fleet --jobs 200 --devices 8

The devices are servers on the loopback interface that sleep instead of computing. A device is idle
from when the first one gets a job to when the last one is done, less the time of its own jobs.
Exits with 1 where a job is lost or the idle time is over `--limit`.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.progress import track

from nmcompile.devices import Address, DeviceServer, Job, Outcome, run_jobs, start_tracker
from nmcompile.devices.tracker import LOOPBACK

KEY = "simulated"


def sleep(request: Mapping[str, Any]) -> dict[str, Any]:
    """The handler of the simulated devices."""
    time.sleep(request["seconds"])
    return {}


def idle_share(outcomes: Sequence[Outcome]) -> float:
    """Share of the devices' time without work, from the first job's begin to the last one's end."""
    busy: dict[str, float] = defaultdict(float)
    for outcome in outcomes:
        busy[outcome.device] += outcome.ended - outcome.began
    span = max(o.ended for o in outcomes) - min(o.began for o in outcomes)
    return 1 - sum(busy.values()) / (span * len(busy))


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench_fleet", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a job, half to twice of it")
    parser.add_argument("--limit", type=float, default=0.05, help="largest idle share")
    options = parser.parse_args()
    chance = random.Random(0)
    jobs = [
        Job(f"job {i}", {"seconds": options.seconds * 2 ** chance.uniform(-1, 1)})
        for i in range(options.jobs)
    ]
    with contextlib.ExitStack() as stack:
        tracker = start_tracker(port=0)
        stack.callback(tracker.terminate)
        address = Address(LOOPBACK, tracker.port)

        def start(_: int) -> DeviceServer:
            handler = f"{__spec__.name}:sleep"
            return DeviceServer(KEY, port=0, tracker=address, handler=handler)

        with ThreadPoolExecutor(options.devices) as pool:
            for server in pool.map(start, range(options.devices)):
                stack.enter_context(server)
        begin = time.monotonic()
        running = run_jobs(address, KEY, jobs)
        console = Console(stderr=True)
        outcomes = list(track(running, "running", total=len(jobs), console=console))
    lost = [outcome.job.name for outcome in outcomes if outcome.error]
    asked = sum(job.request["seconds"] for job in jobs)
    spent = sum(outcome.ended - outcome.began for outcome in outcomes)
    idle = idle_share(outcomes)
    seconds = max(outcome.ended for outcome in outcomes) - begin
    print(
        f"{len(outcomes) - len(lost)} of {len(jobs)} jobs done on "
        f"{len({o.device for o in outcomes})} devices in {seconds:.0f} s; idle {idle:.1%}; "
        f"sessions cost {spent / asked - 1:.1%} beside the jobs"
    )
    return 1 if lost or len(outcomes) < len(jobs) or idle > options.limit else 0


if __name__ == "__main__":
    sys.exit(main())
