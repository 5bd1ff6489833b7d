"""What the documents say in Python is run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", ["README.md", "docs/python.md", "docs/quantization.md", "docs/training.md"])
def test_python_in_the_document_runs(path, tmp_path, monkeypatch):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / path).read_text(), re.M | re.S)
    assert blocks, f"{path} holds no Python"
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks), path, "exec"), {"__name__": path})


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(path):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert not missing
