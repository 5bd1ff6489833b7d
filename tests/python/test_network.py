"""Lowered models against the same models module by module: the same bits, in one call for each integer part."""

from __future__ import annotations

import copy
import gc
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import octet
from helpers import equal_bits, trained
from models import CASES, Inputs
from octet.network import Network, lower


def converted(name: str, **options: str) -> tuple[octet.Int8Model, Inputs]:
    qat, inputs = trained(name, steps=2)
    return octet.convert(qat, **options), inputs


@pytest.fixture(scope="module")
def resnet() -> tuple[octet.Int8Model, Tensor, Tensor]:
    """A converted model, an input, and what its modules give for it one by one."""
    torch.manual_seed(0)
    model, inputs = converted("ResNet")
    (x,), _ = inputs(8)
    return model, x, by_module(model)(x)


def by_module(model: fx.GraphModule) -> fx.GraphModule:
    """Each module a call of its own."""
    return fx.GraphModule(model, model.graph)


def networks(model: nn.Module) -> list[Network]:
    return [m for m in model.modules() if isinstance(m, Network)]


@pytest.mark.parametrize("name", sorted(CASES))
def test_bits_equal_module_by_module(name):
    model, inputs = converted(name)
    assert networks(model.lowered())
    for batch in (1, 7):
        args, kwargs = inputs(batch)
        assert equal_bits(model(*args, **kwargs), by_module(model)(*args, **kwargs)), batch


@pytest.mark.parametrize("name", ["ResNet", "MobileNetV2", "DenseNet", "ManyOutputs"])
def test_an_integer_model_is_one_call(name):
    model, inputs = converted(name)
    lowered = model.lowered()
    assert len(networks(lowered)) == 1
    assert not [m for m in lowered.modules() if isinstance(m, octet.nn.int8.Conv2d)]
    args, _ = inputs(2)
    with torch.profiler.profile() as profile:
        model(*args)
    calls = {event.key: event.count for event in profile.key_averages() if event.key.startswith("octet::")}
    assert calls == {"octet::run_network": 1}


def test_codes_in_and_out():
    model, _ = converted("ResNet", inputs="codes", outputs="codes")
    codes = torch.randint(0, 256, (5, 3, 13, 11), dtype=torch.uint8)
    y = model(codes)
    assert y.dtype == torch.uint8
    assert torch.equal(y, by_module(model)(codes))


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [0, 1, 2, 3, 8])
def test_any_batch_on_any_number_of_threads(resnet, threads, batch):
    model, x, expected = resnet
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(model(x[:batch]), expected[:batch])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_that_leave_the_cache_run_part_by_part(resnet, threads):
    model, *_ = resnet
    x = torch.randn(5, 3, 160, 160)
    expected = by_module(model)(x)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for batch in (1, 2, 3, 5):
            assert torch.equal(model(x[:batch]), expected[:batch]), batch
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["ResNet", "MobileNetV2", "DenseNet"])
def test_the_same_bits_on_every_instruction_set(name):
    qat, inputs = trained(name, steps=2)
    args, _ = inputs(3)
    outputs = {}
    for isa in octet.cpu.available():
        with octet.cpu.force(isa):
            outputs[isa] = octet.convert(qat)(*args)  # converted anew: packed weights keep their instruction set
    for isa, output in outputs.items():
        assert equal_bits(output, outputs["generic"]), isa


@pytest.mark.parametrize(
    "change",
    {
        "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "strided": lambda x: x.repeat_interleave(2, 3)[..., ::2],
        "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        "expanded": lambda x: x[:1].expand(8, -1, -1, -1),
        "double": lambda x: x.double(),
        "requires grad": lambda x: x.clone().requires_grad_(),
    }.items(),
    ids=lambda item: item[0],
)
def test_any_form_of_input(resnet, change):
    model, x, expected = resnet
    given = change[1](x)
    y = model(given)
    assert torch.equal(y, expected[:1].expand_as(y) if change[0] == "expanded" else expected)
    assert not y.requires_grad


def test_image_size_is_free(resnet):
    model, *_ = resnet
    for size in ((1, 1), (5, 9), (32, 17)):
        x = torch.randn(2, 3, *size)
        assert torch.equal(model(x), by_module(model)(x)), size


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(2, 4, 8, 8), r"run_network: conv: input must have 3 channels \(got \[\d, 4, 8, 8\]\)"),
        (torch.randn(3, 8, 8), r"run_network: conv: input must have 4 dimensions \(got \[3, 8, 8\]\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int32), r"inputs must be floating point or uint8 codes \(got Int\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"quantize: input must be floating point \(got uint8\)"),
    ],
    ids=["channels", "dimensions", "dtype", "codes"],
)
def test_wrong_inputs_are_named(resnet, x, message):
    with pytest.raises(RuntimeError, match=message):
        resnet[0](x)


@pytest.mark.parametrize("name", ["program", "weights", "biases", "numbers"])
def test_wrong_arrays_are_named(resnet, name):
    model, x, _ = resnet
    arrays = {key: value.clone() for key, value in networks(model.lowered())[0].named_buffers()}
    with pytest.raises(RuntimeError, match=f"run_network: {name} must have dtype"):
        octet.ops.run_network([x], **arrays | {name: arrays[name].double()})
    with pytest.raises(RuntimeError, match=f"run_network: {name} must be a dense one-dimensional tensor"):
        octet.ops.run_network([x], **arrays | {name: arrays[name].repeat_interleave(2)[::2]})
    with pytest.raises(RuntimeError, match="run_network: the program"):
        octet.ops.run_network([x], **arrays | {name: arrays[name][:-1].clone()})


def test_scripted_and_loaded(resnet, tmp_path):
    model, x, expected = resnet
    torch.jit.script(model).save(tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt").eval()
    assert torch.equal(loaded(x), expected)
    assert torch.equal(torch.jit.freeze(loaded)(x), expected)


def test_copies_and_files(resnet, tmp_path):
    model, x, expected = resnet
    assert torch.equal(copy.deepcopy(model)(x), expected)
    octet.save(model, tmp_path / "model")
    assert torch.equal(octet.load(tmp_path / "model")(x), expected)


def test_weights_are_held_once(resnet):
    lowered = copy.deepcopy(resnet[0])
    flat = networks(lowered.lowered())[0].weights
    weights = [m.weight for m in lowered.modules() if isinstance(m, (octet.nn.int8.Conv2d, octet.nn.int8.Linear))]
    assert weights
    assert {w.untyped_storage().data_ptr() for w in weights} == {flat.untyped_storage().data_ptr()}


@pytest.mark.parametrize("name", ["weight", "bias", "multiplier"])
def test_numbers_changed_in_place_are_seen(resnet, name):
    model, x, expected = copy.deepcopy(resnet[0]), *resnet[1:]
    state = copy.deepcopy(model.state_dict())
    model(x)
    conv = next(m for m in model.modules() if isinstance(m, octet.nn.int8.Conv2d))
    getattr(conv, name).mul_(-1 if name == "weight" else 2)
    assert torch.equal(model(x), by_module(model)(x))
    assert not torch.equal(model(x), expected)
    model.load_state_dict(state)
    assert torch.equal(model(x), expected)


def test_loading_other_numbers_is_seen(resnet):
    model, x, _ = copy.deepcopy(resnet[0]), *resnet[1:]
    state = {key: value * 2 if key.endswith("scale") else value for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert torch.equal(model(x), by_module(model)(x))


def test_converted_and_loaded_in_inference_mode_keep_ordinary_tensors(tmp_path):
    """Inference tensors do not tell when they change, so nothing made of them could be kept between calls."""
    qat, inputs = trained("ResNet")
    with torch.inference_mode():
        int8 = octet.convert(qat)
        octet.save(int8, tmp_path / "model")
        loaded = octet.load(tmp_path / "model")
        expected = int8(*inputs(2)[0])
    for model in (int8, loaded):
        assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
    assert expected.is_inference()


def test_compiles_module_by_module(resnet):
    model, x, expected = resnet
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), expected)


def test_many_threads_at_once(resnet):
    model, x, expected = copy.deepcopy(resnet[0]), *resnet[1:]
    wrong: list[Any] = []

    def work(offset: int) -> None:
        for i in range(50):
            n = 1 + (i + offset) % 8
            if not torch.equal(model(x[:n]), expected[:n]):
                wrong.append((offset, i))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_calls_and_dead_models_leak_nothing():
    """Packed weights and buffers go with the model: hundreds of models of a few megabytes, one after the other."""
    layer = torch.randint(-127, 128, (1024, 1024), dtype=torch.int8)
    zeros, ones = torch.zeros(1024, dtype=torch.int32), torch.full((1024,), 1 / 4095)
    words = [1, 1, 1, 1, 1, 4, 11, 0, 1024, 1024, 0, 0, 0, 7, 100, 0, 255, -1]
    x = torch.randint(0, 256, (64, 1024), dtype=torch.uint8)

    def run_once() -> None:
        program = torch.tensor(words)
        for _ in range(3):
            octet.ops.run_network([x], program, layer, zeros, ones)

    layer = layer.reshape(-1)
    for _ in range(20):
        run_once()
    gc.collect()
    before = resident_bytes()
    for _ in range(200):
        run_once()
    assert resident_bytes() - before < 20 * 2**20


@pytest.mark.slow
def test_a_million_calls_from_four_threads_leak_nothing():
    words = torch.tensor([1, 1, 1, 1, 1, 4, 11, 0, 8, 8, 0, 0, 0, 7, 100, 0, 255, -1])
    layer = torch.randint(-127, 128, (64,), dtype=torch.int8)
    zeros, ones = torch.zeros(8, dtype=torch.int32), torch.full((8,), 1 / 4095)
    x = torch.randint(0, 256, (4, 8), dtype=torch.uint8)
    expected = octet.ops.run_network([x], words, layer, zeros, ones)[0]
    wrong: list[int] = []

    def work(calls: int) -> None:
        for i in range(calls):
            y = octet.ops.run_network([x], words, layer, zeros, ones)[0]
            if i % 1000 == 0 and not torch.equal(y, expected):
                wrong.append(i)

    def run_all(calls: int) -> None:
        threads = [threading.Thread(target=work, args=(calls // 4,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    run_all(20_000)
    gc.collect()
    before = resident_bytes()
    run_all(1_000_000)
    assert wrong == []
    assert resident_bytes() - before < 8 * 2**20


def test_without_integer_parts_nothing_changes():
    graph = fx.symbolic_trace(nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1)))
    x = torch.randn(2, 3)
    assert not networks(lower(graph))
    assert torch.equal(lower(graph)(x), graph(x))


def test_hooks_and_subclasses_see_a_network_that_is_called_at_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(3, 4)
    qat = octet.prepare(model, (x,))
    octet.calibrate(qat, [x])
    int8 = octet.convert(qat)
    expected = qat(x)
    seen: list[str] = []

    class Traced(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    assert torch.equal(int8(x.as_subclass(Traced)).as_subclass(torch.Tensor), expected)
    assert any("run_network" in name for name in seen)

    doubled = int8.register_forward_hook(lambda module, args, output: output * 2)
    assert torch.equal(int8(x), expected * 2)
    doubled.remove()
    at_zero = qat(torch.zeros_like(x))
    zeroed = nn.modules.module.register_module_forward_pre_hook(lambda module, args: (args[0] * 0,))
    try:
        assert torch.equal(int8(x), at_zero)
    finally:
        zeroed.remove()
    assert torch.equal(int8(x), expected)


def test_errors_of_a_network_that_is_called_at_once_have_no_backtrace() -> None:
    qat = octet.prepare(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), (torch.randn(3, 4),))
    octet.calibrate(qat, [torch.randn(3, 4)])
    with pytest.raises(RuntimeError, match="4 features") as caught:
        octet.convert(qat)(torch.randn(3, 5))
    assert "frame #" not in str(caught.value)
