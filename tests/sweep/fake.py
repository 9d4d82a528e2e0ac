"""A run that trains nothing: three rounds, whose accuracy is the option ``x``, and the files of a
run folder.

It diverges where ``x`` is above 1, or 0.875 with seed 8.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from bhfl.sweep.child import end_with_parent

ROUNDS = 3


def told_by(args: list[str]) -> dict[str, Any]:
    """What stands in for what a run is told."""
    own = ("--trainer.name", "--trainer.default_root_dir", "--ckpt_path")
    options = [word for word in args if not word.startswith(own)]
    return {"length": {"trainer.max_rounds": ROUNDS}, "result": {"options": options}}


def main() -> None:
    args = sys.argv[1:]
    options = dict(word.removeprefix("--").split("=", 1) for word in args if word.startswith("--"))
    run = Path(options["trainer.default_root_dir"]) / options["trainer.name"] / "version_0"
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "settings.json").write_text(json.dumps(told_by(args)))
    rows = run / "rounds.jsonl"
    for number in range(1 + (rows.read_text().count("\n") if rows.exists() else 0), ROUNDS + 1):
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")) if number > 1 else 0)
        accuracy = float(options.get("x", "0.5"))
        with open(rows, "a") as file:
            file.write(json.dumps({"round": number, "val/acc_avg": accuracy}) + "\n")
        (run / "checkpoints" / f"round={number:05d}.ckpt").touch()
        if accuracy > 1 or (accuracy == 0.875 and options["seed_everything"] == "8"):
            raise SystemExit(5)
        if options.get("fails") == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if "fails" in options:
            print("rounds are lost", file=sys.stderr)
            raise SystemExit(int(options["fails"]))
    (run / "summary.json").write_text(json.dumps({"rounds": ROUNDS}))


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    main()
