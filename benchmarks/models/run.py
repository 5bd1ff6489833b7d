"""Whole networks: octet against other INT8 runtimes, float in and float out, interleaved in one process.

    python benchmarks/models/run.py --models resnet20,mobilenetv2 --batch 1 --threads 2 --json out.json

Every peer runs with the settings its own documentation recommends for latency, in the memory order it prefers: torch,
octet and LiteRT get channels-last images, the ONNX runtimes NCHW. A peer that is not installed is named and left out;
`pip install -r benchmarks/models/requirements.txt` gives them all. LiteRT's networks are written by `export_tflite.py`,
which needs TensorFlow; the others' are written on first use.

With `--peak build/kernels_benchmark` every round also measures what a bare loop of the machine's INT8 instruction
reaches, and every engine's share of it is given: its operations inside of the image, over its shortest time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

Run = Callable[[], object]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--models", default="resnet18,mobilenetv2,resnet20,ffn")
parser.add_argument("--engines", default="octet,octet_script,onnxruntime,openvino,litert,torch_fx,torch_fp32")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--rounds", type=int, default=6)
parser.add_argument("--slice", type=float, default=0.25, help="seconds for each engine in each round")
parser.add_argument("--files", type=Path, default=Path("networks"), help="where peers' networks lie, or are written")
parser.add_argument("--peak", type=Path, help="kernels_benchmark, to say which share of the machine's peak is reached")
parser.add_argument("--json", type=Path)
options = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(options.threads)  # read when the libraries load

import networks  # noqa: E402
import torch  # noqa: E402


def batches(name: str, count: int = 4) -> list[torch.Tensor]:
    """What every runtime calibrates with."""
    generator = torch.Generator().manual_seed(2)
    shape = networks.example(name, 1).shape
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def torch_run(model: torch.nn.Module, x: torch.Tensor) -> Run:
    def run() -> object:
        with torch.inference_mode():
            return model(x)

    return run


def octet(name: str, batch: int, script: bool = False) -> Run:
    import octet as library

    qat = library.prepare(networks.make(name), (networks.example(name, 2),))
    library.calibrate(qat, batches(name))
    model = library.convert(qat)
    return torch_run(torch.jit.script(model) if script else model, channels_last(networks.example(name, batch)))


def torch_fp32(name: str, batch: int) -> Run:
    model, x = networks.make(name), channels_last(networks.example(name, batch))
    return torch_run(model.to(memory_format=torch.channels_last) if x.dim() == 4 else model, x)


def torch_fx(name: str, batch: int) -> Run:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = "x86"
    model = prepare_fx(networks.make(name), get_default_qconfig_mapping("x86"), (networks.example(name, 1),))
    for x in batches(name):
        model(x)
    x = channels_last(networks.example(name, batch))
    with torch.no_grad():
        return torch_run(torch.jit.freeze(torch.jit.trace(convert_fx(model), x)), x)


def onnx_model(name: str) -> Path:
    path = options.files / f"{name}.onnx"
    if not path.exists():
        free = {"x": {0: "N"}, "y": {0: "N"}}
        names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": free}
        torch.onnx.export(
            networks.make(name), (networks.example(name, 1),), path, opset_version=17, dynamo=False, **names
        )
    return path


def qdq_model(name: str) -> Path:
    """The network with u8 activations and s8 weights per channel, which ONNX Runtime has kernels for."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter([{"x": x.numpy()} for x in batches(name)])

        def get_next(self) -> dict | None:
            return next(self.rest, None)

    prepared, quantized = (options.files / f"{name}.{suffix}.onnx" for suffix in ("prepared", "qdq"))
    if not quantized.exists():
        quant_pre_process(onnx_model(name), prepared)
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(prepared, quantized, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, **kinds)
    return quantized


def nncf_model(name: str) -> Path:
    """The network as OpenVINO's own quantizer makes it."""
    import nncf
    import openvino as runtime

    path = options.files / f"{name}.xml"
    if not path.exists():
        data = nncf.Dataset([x.numpy() for x in batches(name)])
        model = nncf.quantize(runtime.Core().read_model(onnx_model(name)), data, subset_size=4)
        runtime.save_model(model, path, compress_to_fp16=False)
    return path


def onnxruntime(name: str, batch: int) -> Run:
    import onnxruntime as runtime

    settings = runtime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
    x = networks.example(name, batch).numpy()
    settings.add_free_dimension_override_by_name("N", x.shape[0])
    session = runtime.InferenceSession(qdq_model(name), settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y", "cpu")

    def run(held: object = x) -> object:  # the binding does not keep the memory it reads
        return session.run_with_iobinding(binding)

    return run


def openvino(name: str, batch: int) -> Run:
    import openvino as runtime

    core = runtime.Core()
    model = core.read_model(nncf_model(name))
    x = networks.example(name, batch).numpy()
    model.reshape({"x": list(x.shape)})
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": options.threads, "NUM_STREAMS": 1}
    request = core.compile_model(model, "CPU", settings | {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    request.set_input_tensor(runtime.Tensor(x, shared_memory=True))

    def run(held: object = x) -> object:  # the tensor does not keep the memory it shares
        return request.infer()

    return run


def litert(name: str, batch: int) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(str(options.files / f"{name}.tflite"), num_threads=options.threads)  # XNNPACK by default
    x = networks.example(name, batch)
    x = (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).contiguous().numpy()
    place = network.get_input_details()[0]["index"]
    network.resize_tensor_input(place, x.shape)
    network.allocate_tensors()
    network.set_tensor(place, x)
    return network.invoke


ENGINES: dict[str, Callable[[str, int], Run]] = {
    "octet": octet,
    "octet_script": lambda name, batch: octet(name, batch, script=True),
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "litert": litert,
    "torch_fx": torch_fx,
    "torch_fp32": torch_fp32,
}


def prepare(name: str) -> dict[str, Run]:
    runs = {}
    for engine in options.engines.split(","):
        try:
            runs[engine] = ENGINES[engine](name, options.batch)
            runs[engine]()
        except (ImportError, ValueError) as error:  # not installed, no file
            print(f"{name}: {engine} left out: {error}", file=sys.stderr)
    return runs


def peak_gops() -> float:
    """Of all threads together; 0 without `--peak`."""
    if options.peak is None:
        return 0.0
    command = [options.peak, "0.1", "peak"]
    loops = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(options.threads)]
    return sum(float(loop.communicate()[0].split()[-2]) for loop in loops)


def measure(runs: dict[str, Run]) -> tuple[dict[str, list[float]], float]:
    """Seconds per call, and the machine's peak. In turns, so that all engines meet the same weather."""
    times: dict[str, list[float]] = {engine: [] for engine in runs}
    peak = 0.0
    for _ in range(options.rounds):
        peak = max(peak, peak_gops())
        for engine, run in runs.items():
            run()  # wakes the engine's threads and its caches
            end = time.perf_counter() + options.slice
            while time.perf_counter() < end:
                start = time.perf_counter()
                run()
                times[engine].append(time.perf_counter() - start)
            time.sleep(0.01)  # threads that spin go to sleep before the next engine's turn
    return times, peak


def report(name: str, times: dict[str, list[float]], peak: float) -> list[dict]:
    best_peer = min((min(t) for engine, t in times.items() if not engine.startswith("octet")), default=None)
    operations = networks.operations(name, options.batch)
    rows = []
    for engine, seconds in times.items():
        row: dict = {"model": name, "batch": options.batch, "threads": options.threads, "engine": engine}
        row |= {"calls": len(seconds), "min_ms": min(seconds) * 1e3, "median_ms": statistics.median(seconds) * 1e3}
        row["of_best_peer"] = min(seconds) / best_peer if best_peer else None
        row["gops"] = operations / min(seconds) * 1e-9
        row["of_peak"] = row["gops"] / peak if peak else None
        rows.append(row)
        ratio = f"{row['of_best_peer']:6.2f} of the best peer" if best_peer else ""
        share = f" = {100 * row['of_peak']:4.1f} % of {peak:.0f}" if peak else ""
        print(
            f"{name:12s} {engine:13s} min {row['min_ms']:9.3f} ms  median {row['median_ms']:9.3f} ms {ratio}"
            f"  {row['gops']:6.1f} GOPS{share}",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, batch {options.batch}, "
          f"{options.threads} threads")  # fmt: skip
    rows: list[dict] = []
    options.files.mkdir(parents=True, exist_ok=True)
    for name in options.models.split(","):
        rows += report(name, *measure(prepare(name)))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
