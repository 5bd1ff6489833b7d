"""The example of training on several processes, as its first lines say to run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import octet
from data import load
from network import accuracy, logits

ROOT = Path(__file__).parents[2]


def test_two_processes_train_and_convert(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = [str(ROOT / "examples/python/train_ddp.py"), "--output", str(tmp_path / "int8.octet")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *script], capture_output=True, text=True, timeout=480, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"2 processes: FP32 (\d+\.\d+) %, INT8 (\d+\.\d+) %", done.stdout)
    assert found, done.stdout
    before, after = float(found[1]), float(found[2])
    assert after >= 97 and after >= before - 0.5
    _, test = load("digits")
    assert f"{accuracy(logits(octet.load(tmp_path / 'int8.octet'), test), test):.2f}" == found[2]
