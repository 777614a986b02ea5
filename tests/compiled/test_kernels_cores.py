"""Models count with the cores of the machine that is compiled for."""

import os

from nmcompile.kernels.catalog import choose
from nmcompile.kernels.cores import assuming_cores, cores
from nmcompile.kernels.spec import Conv2d
from tests.compiled.test_tuning import make_problem


def test_cores_are_those_of_this_process_unless_told() -> None:
    here = len(os.sched_getaffinity(0))
    with assuming_cores(3):
        assert cores() == 3
        with assuming_cores(None):
            assert cores() == here
    assert cores() == here


def test_tiles_are_ranked_anew_for_other_cores_and_stay_the_same_tiles() -> None:
    problem = make_problem("2:4", conv=Conv2d(1, 64, 28, 28, 64, (3, 3), padding=(1, 1, 1, 1)))
    kernel = choose("conv2d", "avx512", problem).kernel
    ranked = {}
    for count in (1, 16):
        with assuming_cores(count):
            ranked[count] = kernel.configs(problem)
            assert kernel.configs(problem) == ranked[count]
    one, many = ([candidate.config for candidate in ranked[count]] for count in (1, 16))
    assert one != many and set(one) == set(many)
    assert many[0] == min(ranked[16], key=lambda candidate: candidate.cycles).config
