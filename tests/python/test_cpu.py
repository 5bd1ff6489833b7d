"""octet.cpu: listing, asking for and forcing instruction sets."""

import os
import subprocess
import sys

import pytest

from octet import cpu


def cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as file:
            return set(next(line for line in file if line.startswith("flags")).split())
    except (OSError, StopIteration):
        return set()


def ask(isa: str) -> subprocess.CompletedProcess:
    code = "from octet import cpu; print(cpu.active())"
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "OCTET_ISA": isa}, capture_output=True, text=True
    )


def test_every_instruction_set_of_this_machine_is_available():
    flags = cpu_flags()
    expected = ["generic"]
    expected += ["avx2"] if "avx2" in flags else []
    expected += ["avx512vnni"] if {"avx512_vnni", "avx512vbmi"} <= flags else []
    assert cpu.available() == expected


@pytest.mark.parametrize("isa", cpu.available())
def test_forced_instruction_set_is_active_and_is_given_back(isa):
    before = cpu.active()
    with cpu.force("generic"):
        with cpu.force(isa):
            assert cpu.active() == isa
        assert cpu.active() == "generic"
    assert cpu.active() == before


@pytest.mark.parametrize("isa", cpu.available())
def test_environment_variable_chooses(isa):
    assert ask(isa).stdout.strip() == isa


def test_absent_instruction_set_lists_the_choices():
    with (
        pytest.raises(ValueError, match=r'must be one that this machine has: generic.*\(got "sse9"\)'),
        cpu.force("sse9"),
    ):
        pass
    answer = ask("sse9")
    assert answer.returncode != 0
    assert "OCTET_ISA: the instruction set must be one that this machine has: generic" in answer.stderr


def test_kernel_names_end_with_their_instruction_set():
    rows = cpu.kernels()
    assert {row.isa for row in rows} == set(cpu.available())
    assert all(row.name.endswith("__" + row.isa) for row in rows)
    assert {"conv", "rows"} <= {row.family for row in rows}


def test_ops_use_torchs_threads():
    """Torch's loops are serial, silently, in a library that was compiled without its threads."""
    code = """
import os, torch, octet
torch.set_num_threads(3)
x = torch.empty(1 << 20)
before = len(os.listdir("/proc/self/task"))
octet.ops.min_max(x)
print(len(os.listdir("/proc/self/task")) - before)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert int(result.stdout) == 2
