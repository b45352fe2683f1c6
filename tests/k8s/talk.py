"""What a run on Kubernetes says as it goes."""

import time

STARTED = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", flush=True)


def check(holds: object, text: str) -> None:
    if not holds:
        raise SystemExit(f"FAILED: {text}")
    say(text)
