"""``python -m cmt_med.config`` prints the JSON Schema of an experiment, for editors that complete and check YAML."""

from __future__ import annotations

import json
import sys

from cmt_med.config.schema import Experiment


def main() -> int:
    """Print the schema."""
    print(json.dumps(Experiment.model_json_schema(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
