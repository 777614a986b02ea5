"""Judge all backend tests anew, and commit to what comes out: `python -m tests.conformance`.

With --page, only the page is written, of the committed outcomes and the tables as they are.
"""

import sys
import time

from tests.conformance import verdicts
from tests.conformance.cases import load_cases
from tests.conformance.judge import FOREIGN, WRONG
from tests.conformance.workers import judge_all
from tests.support import twins


def main() -> int:
    cases, outcomes, faults = load_cases(), dict[str, str](), 0
    if "--page" in sys.argv[1:]:
        verdicts.write(verdicts.read(), cases)
        return 0
    twins.use()  # forked processes have them, too
    begun = time.monotonic()
    for done, (case, verdict) in enumerate(judge_all(cases), 1):
        outcomes[case.name] = verdict.outcome
        if verdict.outcome in (WRONG, FOREIGN):
            faults += 1
            print(f"{verdict.outcome}: {case.name}: {verdict.text[:300]}", flush=True)
        if done % 200 == 0:
            print(f"{done} of {len(cases)}, {time.monotonic() - begun:.0f} s", flush=True)
    verdicts.write(outcomes, cases)
    print(f"{verdicts.COMMITTED} and {verdicts.PAGE} written; {faults} faults")
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
