"""Reads the object code of the AVX-512 VNNI tiles: between their multiplications no accumulator may visit the stack.

A spill there once made every convolution 2.2 times slower with all tests green.
Usage: check_tiles.py OBJDUMP OBJECT
"""

import re
import subprocess
import sys

ACCUMULATORS = 24  # of the largest tiles, 6 pixels x 4 vectors
LARGEST = ("tile<6, 4>", "code_tile<6, 4, false>", "code_tile<6, 4, true>")


def tiles(objdump: str, path: str) -> dict[str, list[str]]:
    """The instructions of each tile<rows, vectors> and code_tile<rows, vectors, residual>, by name."""
    listing = subprocess.run(
        [objdump, "-d", "-C", "--no-show-raw-insn", path], check=True, capture_output=True, text=True
    )
    found: dict[str, list[str]] = {}
    name = None
    for line in listing.stdout.splitlines():
        if header := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            match = re.search(r"avx512vnni::((?:code_)?tile<\d+, \d+(?:, \w+)?>)", header[1])
            name = match[1] if match else None
        elif name and "\t" in line:
            found.setdefault(name, []).append(line.split("\t", 1)[1])
    return found


def spills(instructions: list[str]) -> list[str]:
    products = [i for i, text in enumerate(instructions) if text.startswith("vpdpbusd")]
    loop = instructions[products[0] : products[-1] + 1]
    # The stack is %rsp or, below a frame, -0x..(%rbp): without a frame %rbp is a register like any other.
    return [text for text in loop if "%zmm" in text and re.search(r"\(%rsp|-0x[0-9a-f]+\(%rbp\)", text)]


def main(objdump: str, path: str) -> int:
    found = tiles(objdump, path)
    faults = {name: bad for name, code in found.items() if (bad := spills(code))}
    for name, bad in faults.items():
        print(f"{name}: accumulators on the stack between the products:", *bad, sep="\n  ")
    for name in LARGEST:
        products = sum(text.startswith("vpdpbusd") for text in found.get(name, []))
        if products < ACCUMULATORS:
            faults[name] = []
            print(f"{name}: expected at least {ACCUMULATORS} vpdpbusd, found {products} (tiles found: {sorted(found)})")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
