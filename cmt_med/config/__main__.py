"""``python -m cmt_med.config`` prints the JSON Schema of an experiment, for editors that complete and check YAML."""

from __future__ import annotations

import json

from cmt_med.config.schema import Experiment

if __name__ == "__main__":
    print(json.dumps(Experiment.model_json_schema(), indent=1))
