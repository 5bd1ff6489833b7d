"""Files are whole, ours, and hold nothing that runs."""

from __future__ import annotations

import json
import os
import random
import zipfile

import pytest
import torch
from torch import nn
from torch.utils.serialization import config

import octet
from helpers import equal_bits, train, trained
from octet.errors import FileError

NAMES = ["ResNet", "DenseSkips", "SharedConv", "FloatIsland", "AudioNet", "TwoInputs", "ManyOutputs"]


@pytest.mark.parametrize("name", NAMES)
def test_models_come_back_as_they_were(name, tmp_path):
    qat, inputs = trained(name)
    args, kwargs = inputs(3)
    for model in (qat, octet.convert(qat)):
        octet.save(model, tmp_path / "model")
        again = octet.load(tmp_path / "model")
        assert type(again).__mro__[1] is type(model).__mro__[1]
        assert list(again.state_dict()) == list(model.state_dict())
        with torch.no_grad():
            assert equal_bits(again(*args, **kwargs), model(*args, **kwargs))
        assert again.rows == model.rows and octet.report(again) == octet.report(model)


def test_a_loaded_model_trains_on_as_the_saved_one(tmp_path):
    qat, inputs = trained("ResNet")
    octet.set_mode(qat, freeze_bn=True)
    octet.save(qat, tmp_path / "model")
    again = octet.load(tmp_path / "model")
    for model in (qat, again):
        torch.manual_seed(1)
        train(model, inputs, steps=2)
    assert equal_bits(qat.state_dict(), again.state_dict())
    assert octet.verify(again, octet.convert(again), *inputs(2))


def test_shared_parameters_stay_shared(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    model[2].weight = model[0].weight
    qat = octet.prepare(model, (torch.randn(2, 3, 4, 4),))
    octet.save(qat, tmp_path / "model")
    again = octet.load(tmp_path / "model")
    assert again.get_submodule("2").weight is again.get_submodule("0").weight
    assert len(list(again.parameters())) == len(list(qat.parameters()))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    qat, _ = trained("SharedConv")
    path = tmp_path / "model"
    octet.save(qat, path)
    before = path.read_bytes()

    def fails(content, file):
        with open(file, "wb") as out:
            out.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="no space left"):
        octet.save(qat, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("part", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_refused(part, tmp_path):
    qat, _ = trained("SharedConv")
    path = tmp_path / "model"
    octet.save(qat, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole)) if part < 1 else part])
    with pytest.raises(FileError, match=r"model: must be a whole file written by octet.save"):
        octet.load(path)


def test_files_with_a_flipped_bit_are_refused_or_equal(tmp_path):
    """Equal, because a zip archive has dates and padding that nobody reads."""
    qat, _ = trained("SharedConv")
    path = tmp_path / "model"
    octet.save(qat, path)
    whole = path.read_bytes()
    draw, refused = random.Random(0), 0
    for _ in range(100):
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        try:
            again = octet.load(path)
        except FileError:
            refused += 1
        else:
            assert equal_bits(again.state_dict(), qat.state_dict()) and again.code == qat.code
    assert refused > 50


def test_files_have_checksums_in_programs_that_do_without(tmp_path):
    qat, _ = trained("SharedConv")
    with config.patch("save.compute_crc32", False):
        octet.save(qat, tmp_path / "model")
    assert zipfile.ZipFile(tmp_path / "model").testzip() is None
    assert equal_bits(octet.load(tmp_path / "model").state_dict(), qat.state_dict())


def test_foreign_files_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "checkpoint")
    with pytest.raises(FileError, match=r"must be written by octet.save \(got a file of another program\)"):
        octet.load(tmp_path / "checkpoint")
    (tmp_path / "text").write_text("not a model")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("a", "b")
    for name in ("text", "zip"):
        with pytest.raises(FileError, match=r"must be a whole file written by octet.save"):
            octet.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        octet.load(tmp_path / "nothing")


def tampered(tmp_path, change) -> str:
    """A file of ours after `change` on its parsed model."""
    qat, _ = trained("SharedConv")
    path = tmp_path / "model"
    octet.save(qat, path)
    content = torch.load(path, weights_only=True)
    data = json.loads(content["model"])
    change(content, data)
    content["model"] = json.dumps(data)
    torch.save(content, path)
    return path


def call(data, op):
    return next(node for node in data["graph"] if node["op"] == op)


HOSTILE = {
    "a class of another package": lambda c, d: d["modules"][1].update({"class": "subprocess.Popen"}),
    "a function of another package": lambda c, d: d["graph"].insert(
        0, {**call(d, "placeholder"), "name": "evil", "op": "call_function", "target": "os.system", "octet_name": None}
    ),
    "code in a name": lambda c, d: call(d, "placeholder").update({"target": "x):import os#"}),
    "a method": lambda c, d: call(d, "call_module").update({"op": "call_method", "target": "backward"}),
    "a missing tensor": lambda c, d: c["tensors"].pop(next(iter(c["tensors"]))),
    "a missing part": lambda c, d: d.pop("graph"),
    "a newer version": lambda c, d: c.update(version=99),
}


@pytest.mark.parametrize("change", HOSTILE)
def test_tampered_files_are_refused(change, tmp_path):
    path = tampered(tmp_path, HOSTILE[change])
    with pytest.raises(FileError, match=r"load: .*model: "):
        octet.load(path)


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    class Mine(nn.LayerNorm):
        pass

    with pytest.raises(TypeError, match=r"must be prepared or converted by octet \(got Linear\)"):
        octet.save(nn.Linear(2, 2), tmp_path / "model")
    qat, _ = trained("FloatIsland")
    name = next(n for n, m in qat.named_modules() if isinstance(m, nn.LayerNorm))
    qat.set_submodule(name, Mine(4))
    with pytest.raises(FileError, match=rf"save: {name}: a layer must be of torch.nn or octet"):
        octet.save(qat, tmp_path / "model")
    assert not list(tmp_path.iterdir())
