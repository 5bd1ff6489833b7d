"""The prepared model is the original in everything but its numbers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

import octet
from helpers import equal_bits, train, trained
from models import CASES, build
from octet.errors import CaptureError, PrepareError, StateDictError


def prepared(name: str = "ResNet", recipe: octet.Recipe | None = None, **options) -> tuple[octet.QATModel, nn.Module]:
    model, inputs = build(name)
    args, kwargs = inputs(2)
    return octet.prepare(model, args, recipe, kwargs=kwargs, **options), model


@pytest.mark.parametrize("name", CASES)
def test_the_first_forward_only_observes_and_is_the_float_model(name):
    model, inputs = build(name)
    args, kwargs = inputs(2)
    qat = octet.prepare(model, args, kwargs=kwargs).eval()
    with torch.no_grad():
        actual = qat(*args, **kwargs)
        expected = model.eval()(*args, **kwargs)  # last: one of the models writes to its input
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_parameters_and_keys_are_those_of_the_original():
    qat, model = prepared()
    assert [n for n, _ in qat.named_parameters()] == [n for n, _ in model.named_parameters()]
    keys = list(qat.state_dict())
    original = [key for key in keys if not key.startswith("octet.")]
    assert original == list(model.state_dict())
    assert "octet.layer1.0.conv1.output.scale" in keys and "octet.x.zero_point" in keys
    assert not any("pending" in key for key in keys)


def test_the_original_is_left_alone():
    model, inputs = build("ResNet")
    before = copy.deepcopy(model.state_dict())
    qat = octet.prepare(model, inputs(2)[0])
    train(qat, inputs, steps=1)
    assert model.training and equal_bits(before, model.state_dict())


def test_training_changes_the_loss_on_the_grids():
    model, inputs = build("ResNet")
    qat = octet.prepare(model, inputs(2)[0])
    ((x,), _), target = inputs(8), torch.arange(8)
    optimizer = torch.optim.Adam(qat.parameters(), lr=0.01)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(qat(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_ranges_of_a_forward_act_from_the_next_one():
    qat, _ = prepared()
    grid = qat.get_submodule("octet.x")
    x = torch.randn(2, 3, 9, 9)
    qat(x)
    scale = grid.scale.clone()
    expected = octet.ops.fake_quantize_per_tensor(10 * x, *grid.grid())
    seen = {}
    grid.register_forward_hook(lambda module, args, out: seen.update(out=out, scale=module.scale.clone()))
    qat(10 * x)
    assert torch.equal(seen["out"], expected) and torch.equal(seen["scale"], scale) and grid.scale > scale


def test_evaluation_never_observes_nor_changes_state():
    qat, inputs = trained("ResNet")
    before = copy.deepcopy(qat.state_dict())
    qat(100 * inputs(2)[0][0])
    assert equal_bits(before, qat.state_dict())


@pytest.mark.parametrize("name", ["ResNet", "DenseSkips", "SharedConv"])
def test_deepcopy_is_independent(name):
    qat, inputs = trained(name)
    copied = copy.deepcopy(qat)
    args, kwargs = inputs(2)
    before = qat(*args, **kwargs)
    assert equal_bits(copied(*args, **kwargs), before)
    train(copied, inputs, steps=2)
    assert equal_bits(qat(*args, **kwargs), before)
    assert not equal_bits(copied.eval()(*args, **kwargs), before)


def test_pickle_keeps_the_model():
    qat, inputs = trained("ResNet")
    again = pickle.loads(pickle.dumps(qat))
    args, _ = inputs(2)
    assert type(again).__mro__[1] is octet.QATModel and equal_bits(again(*args), qat(*args))


# state_dicts.


def test_state_dict_moves_everything():
    qat, inputs = trained("ResNet")
    other, _ = prepared()
    other.load_state_dict(qat.state_dict())
    args, _ = inputs(2)
    with torch.no_grad():
        assert equal_bits(other.eval()(*args), qat(*args))


def test_a_checkpoint_of_the_float_model_loads():
    qat, _ = trained("ResNet")
    model, _ = build("ResNet", seed=1)
    ranges = {k: v.clone() for k, v in qat.state_dict().items() if k.startswith("octet.")}
    qat.load_state_dict(model.state_dict())
    assert torch.equal(qat.get_submodule("fc").weight, model.fc.weight)
    assert all(torch.equal(qat.state_dict()[key], value) for key, value in ranges.items())


@pytest.mark.parametrize("drop", ["octet.layer1.0.conv1.output.scale", "octet.x.", "fc.weight"])
def test_half_a_state_dict_is_refused_and_nothing_changes(drop):
    source, _ = trained("ResNet")
    qat, _ = prepared()
    before = copy.deepcopy(qat.state_dict())
    half = {key: value for key, value in source.state_dict().items() if not key.startswith(drop)}
    with pytest.raises(StateDictError, match=rf"missing: {drop}.*nothing was changed"):
        qat.load_state_dict(half)
    assert equal_bits(before, qat.state_dict())


def test_another_models_state_dict_is_refused():
    qat, _ = prepared()
    other, _ = prepared("DenseNet")
    with pytest.raises(StateDictError, match=r"missing: stem.*unexpected: "):
        qat.load_state_dict(other.state_dict())
    wider = {key: torch.zeros(3, *value.shape) for key, value in qat.state_dict().items()}
    with pytest.raises(StateDictError, match=r"of another shape: .*\(3, 8, 3, 3, 3\) instead of \(8, 3, 3, 3\)"):
        qat.load_state_dict(wider)
    with pytest.raises(StateDictError, match=r"of another shape: .* int instead of"):
        qat.load_state_dict(dict.fromkeys(qat.state_dict(), 3))


# Recipes.


def test_overrides_by_name_and_by_type():
    spec = octet.Spec(bits=4, observer="min_max")
    overrides = {"stem": octet.Float, "layer1.0": spec, nn.Linear: octet.Spec(bits=6)}
    qat, _ = prepared(recipe=octet.Recipe(overrides=overrides))
    rows = {row.name: row for row in qat.rows}
    assert not rows["stem.0"].int8 and rows["stem.0"].reason == "octet.Float in the recipe"
    block = qat.get_submodule("octet.layer1.0.conv1")
    assert (block.weight_bits, block.output.bits, block.output.observer) == (4, 4, "min_max")
    assert qat.get_submodule("octet.fc").weight_bits == 6
    assert qat.get_submodule("octet.layer1.1.conv1").weight_bits == 8


def test_overrides_are_checked():
    with pytest.raises(PrepareError, match=r"override 'layer9' must name"):
        prepared(recipe=octet.Recipe(overrides={"layer9": octet.Float}))
    with pytest.raises(TypeError, match=r"the override of 'fc' must be octet.Float or a Spec \(got 'float'\)"):
        octet.Recipe(overrides={"fc": "float"})
    with pytest.raises(TypeError, match=r"override keys must be module names or types \(got 3\)"):
        octet.Recipe(overrides={3: octet.Float})


def test_an_accumulator_that_could_overflow_is_refused_by_name():
    model = nn.Sequential(nn.Flatten(), nn.Linear(40000, 2))
    with pytest.raises(PrepareError, match=r"prepare: 1: .*\(got 40000 products, 1295400000\)"):
        octet.prepare(model, (torch.randn(2, 40000),))
    octet.prepare(model, (torch.randn(2, 40000),), octet.Recipe(overrides={"1": octet.Spec(bits=7)}))


def test_only_modules_and_recipes_are_taken():
    with pytest.raises(TypeError, match=r"prepare: the model must be a Module \(got function\)"):
        octet.prepare(lambda x: x, (torch.randn(2, 2),))
    with pytest.raises(TypeError, match=r"prepare: the recipe must be a Recipe \(got dict\)"):
        octet.prepare(nn.Linear(2, 2), (torch.randn(2, 2),), {"": octet.Float})


def test_a_model_that_cannot_be_captured_says_where():
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match=r"test_prepare.py:\d+"):
        octet.prepare(Branches(), (torch.randn(2, 2),))


# Grids.


def test_tied_tensors_share_one_grid():
    qat, _ = trained("DenseNet")
    root = qat.get_submodule("octet")
    blocks = [m for m in root.modules() if isinstance(m, octet.nn.Block)]
    owned = [m for m in root.modules() if isinstance(m, octet.nn.FakeQuantize)]
    assert len(owned) < len(blocks) + 1  # concatenated tensors share
    assert {id(block.output) for block in blocks} <= {id(grid) for grid in owned}


def test_grids_joined_by_adds_have_odd_steps_of_one_unit():
    qat, _ = trained("DenseSkips")
    adds = [m for m in qat.modules() if isinstance(m, octet.nn.Add)]
    assert adds
    for add in adds:
        grids = [*add.inputs(), add.output]
        assert all(int(grid.steps) % 2 == 1 for grid in grids)
        units = torch.stack([grid.scale / grid.steps for grid in grids])
        torch.testing.assert_close(units, units[:1].expand_as(units), rtol=1e-6, atol=0)


def test_a_module_called_twice_has_one_block():
    qat, _ = trained("SharedConv")
    calls = [node.target for node in qat.graph.nodes if node.op == "call_module"]
    twice = {target for target in calls if calls.count(target) == 2}
    assert any(isinstance(qat.get_submodule(target), octet.nn.NormBlock) for target in twice)


def test_report_names_layers_reasons_and_grids():
    qat, _ = trained("SqueezeExcite")
    text = octet.report(qat)
    assert "layers are INT8" in text and "Sigmoid has no INT8 operator" in text and "zero point" in text
    assert "float" in octet.report(octet.convert(qat))
    aux, _ = trained("AuxHead")
    assert "not reached by the evaluation graph" in octet.report(aux)
    with pytest.raises(TypeError, match=r"must be prepared or converted by octet \(got Linear\)"):
        octet.report(nn.Linear(2, 2))


# Around the model.


@pytest.mark.parametrize("name", ["ResNet", "DenseSkips"])
def test_compiled_without_graph_breaks(name):
    qat, inputs = trained(name)
    args, _ = inputs(3)
    qat.train()
    compiled = torch.compile(copy.deepcopy(qat), backend="aot_eager", fullgraph=True)
    assert equal_bits(compiled(*args), qat(*args))
    with torch.no_grad():
        assert equal_bits(compiled.eval()(*args), qat.eval()(*args))


def test_low_memory_trains_the_same_weights():
    plain, inputs = trained("ResNet", steps=0)
    saving, _ = prepared(low_memory=True)
    for qat in (plain, saving):
        torch.manual_seed(1)
        train(qat, inputs, steps=3)
    assert equal_bits(plain.state_dict(), saving.state_dict())


def _observe_half(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    qat, _ = prepared("SharedConv")
    torch.manual_seed(rank)
    with torch.no_grad():
        qat.train()(torch.randn(2, 3, 8, 8) * (1 + rank))
    torch.save({k: v for k, v in qat.state_dict().items() if k.startswith("octet.")}, f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


def test_ranges_are_the_same_on_all_processes(tmp_path):
    mp.spawn(_observe_half, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert equal_bits(first, second) and float(first["octet.x.max"]) > 0
