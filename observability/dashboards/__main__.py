"""`python -m observability.dashboards`: writes the dashboards as JSON for Grafana, and removes files of former ones.

Called by people and by scripts/chart, which copies the files into the chart; a test compares them.
"""

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from observability.dashboards import control, data, hosts, provisioning, store

FOLDER = Path(__file__).parent / "json"
BOARDS = (provisioning, control, hosts, data, store)


def rendered() -> dict[str, str]:
    """Text by file name."""
    made = [board.dashboard() for board in BOARDS]
    return {f"{one.uid}.json": json.dumps(one, cls=JSONEncoder, sort_keys=True, indent=1) + "\n" for one in made}


def main() -> None:
    files = rendered()
    FOLDER.mkdir(exist_ok=True)
    for name, text in files.items():
        (FOLDER / name).write_text(text)
    for path in FOLDER.glob("*.json"):
        if path.name not in files:
            path.unlink()


if __name__ == "__main__":
    main()
