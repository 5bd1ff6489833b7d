"""The captured graph is the model: same names, same bits, same manners. And what it cannot be, it says."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

import models
from octet.capture import ModuleGraph, capture
from octet.errors import CaptureError, OctetError

ALL = sorted(models.CASES)


def captured(name: str, batch: int = 2) -> tuple[nn.Module, ModuleGraph, models.Inputs]:
    """A fresh copy of the model and of its graph: the capture itself takes a second."""
    model, graph = _captured(name, batch)
    return copy.deepcopy(model), copy.deepcopy(graph), models.CASES[name][1]


@functools.cache
def _captured(name: str, batch: int) -> tuple[nn.Module, ModuleGraph]:
    model, inputs = models.build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of these computes anything else in training
        return model, capture(model, *inputs(batch))


def run(module: nn.Module, inputs: tuple[tuple, dict]) -> object:
    """Runs on copies, from a fixed random state: some models write to their input, some draw dropout masks."""
    torch.manual_seed(7)
    args, kwargs = copy.deepcopy(inputs)
    return module(*args, **kwargs)


def assert_same(actual: object, expected: object) -> None:
    actual, actual_spec = pytree.tree_flatten(actual)
    expected, expected_spec = pytree.tree_flatten(expected)
    assert actual_spec == expected_spec
    assert len(expected) > 0
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def names(graph: ModuleGraph, op: str) -> list[str]:
    return [node.meta["octet_name"] for node in graph.graph.nodes if node.op == op]


@pytest.mark.parametrize("name", ALL)
def test_same_bits_in_eval_for_any_batch(name):
    model, graph, inputs = captured(name)
    model.eval(), graph.eval()
    for batch in (1, 2, 7):
        example = inputs(batch)
        assert_same(run(graph, example), run(model, example))


@pytest.mark.parametrize("name", ALL)
def test_same_bits_and_gradients_in_training(name):
    model, graph, inputs = captured(name)
    model.train(), graph.train()
    example = inputs(3)
    expected, actual = run(model, example), run(graph, example)
    assert_same(actual, expected)
    for output in (expected, actual):
        sum(leaf.sin().sum() for leaf in pytree.tree_leaves(output)).backward()
    for (key, p), (_, q) in zip(model.named_parameters(), graph.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), key
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, msg=key)
    assert_same(graph.state_dict(), model.state_dict())  # running statistics too


@pytest.mark.parametrize("name", ALL)
def test_state_is_the_models_own(name):
    model, graph, _ = captured(name)
    assert list(graph.state_dict()) == list(model.state_dict())
    assert [k for k, _ in graph.named_parameters()] == [k for k, _ in model.named_parameters()]
    assert graph.load_state_dict(model.state_dict(), strict=True) is not None
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in graph.parameters()}


@pytest.mark.parametrize("name", ALL)
def test_copies_and_pickles_keep_names_and_bits(name):
    _, graph, inputs = captured(name)
    graph.eval()
    example = inputs(3)
    for other in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert isinstance(other, ModuleGraph)
        assert [n.meta["octet_name"] for n in other.graph.nodes] == [n.meta["octet_name"] for n in graph.graph.nodes]
        assert other.unreached == graph.unreached
        assert list(other.state_dict()) == list(graph.state_dict())
        assert not {p.data_ptr() for p in graph.parameters()} & {p.data_ptr() for p in other.parameters()}
        assert_same(run(other, example), run(graph, example))


@pytest.mark.parametrize("name", sorted(set(ALL) - {"ManyOutputs"}))
def test_lean_graph_scripts(name):
    """(TorchScript has no type for ManyOutputs' mixed dict.)"""
    _, graph, inputs = captured(name)
    graph.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(graph.lean())
    for batch in (1, 5):
        example = inputs(batch)
        assert_same(run(scripted, example), run(graph, example))


@pytest.mark.parametrize("name", ALL)
def test_batch_of_one_captures_the_same_graph(name):
    _, two, _ = captured(name)
    _, one, _ = captured(name, batch=1)
    assert one.code == two.code


@pytest.mark.parametrize("name", ALL)
def test_names_are_unique_and_values_known(name):
    _, graph, _ = captured(name)
    found = [node.meta["octet_name"] for node in graph.graph.nodes]
    assert len(set(found)) == len(found)
    assert all("val" in node.meta for node in graph.graph.nodes if node.op in ("call_module", "placeholder"))


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_written_in_place(name):
    _, graph, inputs = captured(name)
    example = inputs(2)
    before = copy.deepcopy(example)
    graph(*example[0], **example[1])
    tensors = [[v for v in pytree.tree_leaves(e) if isinstance(v, torch.Tensor)] for e in (example, before)]
    assert_same(*tensors)
    called = [n.target for n in graph.graph.nodes if isinstance(n.target, torch._ops.OpOverloadPacket)]
    assert not [packet for packet in called if packet.__name__.endswith("_")]


def test_model_is_left_alone():
    model, inputs = models.build("ResNet")
    model.layer1.eval()
    before, flags = copy.deepcopy(model.state_dict()), {k: m.training for k, m in model.named_modules()}
    example, state = inputs(2), torch.get_rng_state()
    graph = capture(model, *example)
    assert torch.equal(torch.get_rng_state(), state)
    assert {k: m.training for k, m in model.named_modules()} == flags
    assert {k: m.training for k, m in graph.named_modules()} == flags
    assert_same(model.state_dict(), before)
    assert model.stem[2].inplace and not graph.stem[2].inplace


def test_modules_and_functions_have_readable_names():
    _, graph, _ = captured("ResNet")
    assert names(graph, "call_module")[:7] == [
        "stem.0", "stem.1", "stem.2", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.relu", "layer1.0.conv2",
    ]  # fmt: skip
    assert names(graph, "call_function") == [
        "layer1.0.add", "layer1.1.add", "layer2.0.add", "layer2.1.add", "flatten",
    ]  # fmt: skip
    assert "layer1.0.relu_1" in names(graph, "call_module")


def test_shared_module_is_called_twice():
    _, graph, _ = captured("SharedConv")
    assert [n.target for n in graph.graph.nodes if n.op == "call_module"] == ["stem", "conv", "conv", "bn"]


def test_own_parameters_are_read_by_name():
    _, graph, _ = captured("FunctionalStyle")
    assert names(graph, "get_attr") == ["weight", "scale"]


def test_functional_dropout_becomes_a_module():
    _, graph, _ = captured("FunctionalStyle")
    (dropout,) = (m for m in graph.modules() if isinstance(m, nn.Dropout))
    assert dropout.p == 0.25


def test_unreached_head_stays_and_is_named():
    _, graph, _ = captured("AuxHead")
    assert graph.unreached == ["aux"]
    assert isinstance(graph.aux[0], nn.Conv2d)


def test_signature_and_fixed_inputs():
    model, graph, inputs = captured("TwoInputs")
    args, kwargs = inputs(2)
    model.eval(), graph.eval()
    assert_same(graph(args[0], vector=kwargs["vector"]), model(args[0], **kwargs))
    with pytest.raises(AssertionError, match=r"input 'scale' must be 0\.5"):
        graph(args[0], vector=kwargs["vector"], scale=2.0)
    with_none = capture(model, args, {**kwargs, "mask": None})
    with pytest.raises(AssertionError, match="input 'mask' must be None"):
        with_none(args[0], **kwargs, mask=torch.ones(6))


class StochasticDepth(nn.Module):
    """As torchvision and timm have it: nothing in evaluation, drops whole samples in training."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        return x * torch.empty(x.shape[0], 1, 1, 1).bernoulli_(0.5)


def test_stochastic_depth_is_restored():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), StochasticDepth(), nn.ReLU())
    graph = capture(model, (torch.randn(2, 3, 4, 4),))
    example = (torch.randn(16, 3, 4, 4),), {}
    assert_same(run(graph.train(), example), run(model.train(), example))
    assert_same(run(graph.eval(), example), run(model.eval(), example))
    assert "1" in names(graph, "call_module")


class NoGrad(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            scale = x.abs().amax()
        return x / scale + (x.round() - x).detach()


def test_no_grad_and_detach_keep_their_gradients():
    model, graph = NoGrad(), capture(NoGrad(), (torch.randn(2, 3),))
    gradients = []
    for module in (model, graph):
        x = torch.linspace(-2, 2, 12).reshape(4, 3).requires_grad_()
        module(x).square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_user_dynamic_shapes():
    dim = torch.export.Dim.DYNAMIC
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    graph = capture(model, (torch.randn(2, 3, 9, 8),), dynamic_shapes=({0: dim, 2: dim, 3: dim},)).eval()
    x = torch.randn(3, 3, 14, 21)
    assert torch.equal(graph(x), model(x))


class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # the line the error must show
            return x
        return -x


def test_data_dependent_control_flow_names_the_line():
    with pytest.raises(CaptureError, match=r"test_capture\.py:\d+ \(if x\.sum\(\) > 0:.*data-dependent") as caught:
        capture(Branches(), (torch.randn(2, 3),))
    assert isinstance(caught.value, OctetError)


class FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1)


def test_fixed_batch_is_refused():
    with pytest.raises(CaptureError, match=r"x.*specialized it to be a constant \(2\).*dynamic_shapes"):
        capture(FixedBatch(), (torch.randn(2, 3),))


class TrainingStructure(nn.Module):
    def forward(self, x):
        return (x, x + 1) if self.training else x


def test_other_structure_in_training_is_refused():
    with pytest.raises(CaptureError, match=r"same structure in training.*tuple of 2 and a tensor"):
        capture(TrainingStructure(), (torch.randn(2, 3),))


class TrainingValues(nn.Module):
    def forward(self, x):
        return x + 1 if self.training else x.clone()


def test_other_values_in_training_warn():
    with pytest.warns(UserWarning, match="in training mode TrainingValues computes other values"):
        capture(TrainingValues(), (torch.randn(2, 3),))


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def test_write_to_a_buffer_is_refused():
    with pytest.raises(CaptureError, match=r"must not write to its state \(got b_calls\) at .*test_capture\.py:\d+"):
        capture(Counts(), (torch.randn(2, 3),))


def test_nested_inputs_are_refused():
    with pytest.raises(CaptureError, match=r"input 0 must be a tensor or a constant \(got list\)"):
        capture(nn.Identity(), ([torch.randn(2, 3)],))
    with pytest.raises(CaptureError, match=r"args must be a tuple .*\(got Tensor\)"):
        capture(nn.Identity(), torch.randn(2, 3))


class Uncopyable(nn.Module):
    def __init__(self):
        super().__init__()
        self.cache = nn.Parameter(torch.ones(3)) * 2

    def forward(self, x):
        return x * self.cache


def test_uncopyable_model_is_refused():
    with pytest.raises(CaptureError, match=r"Uncopyable must allow copy\.deepcopy"):
        capture(Uncopyable(), (torch.randn(2, 3),))


class SubclassedNorm(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: the functional form, and an activation of its own."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x):
        use_batch = self.training or self.running_mean is None
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, use_batch, 0.1, self.eps)
        return self.act(self.drop(x))


def test_subclassed_batch_norm_trains():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), SubclassedNorm(4))
    graph = capture(model, (torch.randn(2, 3, 4, 4),))
    assert names(graph, "call_module") == ["0", "1", "1.act"]
    example = (torch.randn(5, 3, 4, 4),), {}
    assert_same(run(graph.train(), example), run(model.train(), example))
    assert torch.equal(graph.state_dict()["1.running_var"], model[1].running_var)


def same_in_both_modes(model: nn.Module, *shape: int) -> ModuleGraph:
    """Captures a model of one image-like input and compares another batch; returns the graph."""
    graph = capture(model, (torch.randn(2, *shape),))
    example = (torch.randn(5, *shape),), {}
    assert_same(run(graph.train(), example), run(model.train(), example))
    assert_same(run(graph.eval(), example), run(model.eval(), example))
    return graph


def test_attention_modules():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    graph = same_in_both_modes(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 5, 8)
    assert "layers.1.norm2" in names(graph, "call_module")


def test_attention_dropout_warns():
    with pytest.warns(UserWarning, match="dropout inside attention"):
        capture(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True), (torch.randn(2, 5, 8),))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 6, 2, batch_first=True)

    def forward(self, x):
        return self.gru(x)[0][:, -1]


def test_recurrent_modules_stay_functions():
    graph = same_in_both_modes(Recurrent(), 7, 4)
    assert names(graph, "call_module") == []
    assert graph.unreached == []


def test_computed_weights_keep_their_parametrization():
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    graph = same_in_both_modes(nn.Sequential(conv, nn.ReLU()), 3, 6, 6)
    assert names(graph, "call_module") == ["1"]
    assert set(names(graph, "get_attr")) == {"0.bias", *(f"0.parametrizations.weight.original{i}" for i in (0, 1))}


class GivenOutputSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 3, stride=2)

    def forward(self, x):
        return self.up(x), self.up(x, output_size=(12, 12))


def test_transposed_convolution_with_output_size_stays_a_function():
    graph = same_in_both_modes(GivenOutputSize(), 3, 5, 5)
    assert names(graph, "call_module") == ["up"]
    assert names(graph, "call_function") == ["up.conv_transpose2d"]


def test_patched_and_hooked_modules_stay_functions():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ReLU())
    model[1].register_forward_hook(lambda module, args, output: output * 2)
    graph = same_in_both_modes(model, 3, 4, 4)
    assert names(graph, "call_module") == ["0", "2"]
    assert names(graph, "call_function") == ["1.relu", "1.mul"]


def test_graph_trains_with_an_optimizer():
    model, graph, inputs = captured("ResNet")
    losses = []
    example = inputs(4)
    for module in (model, graph):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(run(module.train(), example), torch.arange(4))
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == losses[1]
