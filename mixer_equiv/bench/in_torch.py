"""A torch program of a cell as something to call: inference, or a training step by `torch.optim.SGD`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from mixer_equiv.arrays.interop import to_numpy, to_torch
from mixer_equiv.bench.cells import Cell
from mixer_equiv.bench.contestants import Contestant, Way
from mixer_equiv.bench.environment import extra_memory
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.equivalence.record.precision import no_tf32
from mixer_equiv.errors import ConfigError
from mixer_equiv.layouts import LAYOUTS, LINEN
from mixer_equiv.models.torch import inference as torch_inference
from mixer_equiv.models.torch.formulations import CHANNELS, TOKENS
from mixer_equiv.models.torch.packed import packed_product

Arrays = Mapping[str, np.ndarray]


# Of a model in its dtype, on its device, what is called with images.
WAYS: Mapping[Way, Callable[[Any], Callable[[torch.Tensor], torch.Tensor]]] = {
    "plain": lambda model: model,
    "compiled": partial(torch.compile, dynamic=False),
    "graphed": lambda model: Graphed(model),
    "packed": lambda model: model.packed(),
}


class Graphed:
    """A model in inference as a CUDA graph: its kernels are recorded at the first call, and launched as one later.

    Images are of the first one's shape; a result is good until the next.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, torch.cuda.CUDAGraph()
        self.images: torch.Tensor | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.images is None:
            self._record(images)
        else:
            self.images.copy_(images)
        self.graph.replay()
        return self.logits

    def _record(self, images: torch.Tensor) -> None:
        self.images = images.clone()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries take their workspaces before anything is recorded
            for _ in range(3):
                self.model(self.images)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(self.graph):
            self.logits: torch.Tensor = self.model(self.images)


class TorchCall:
    """Calling it computes once, and returns when that is done."""

    def __init__(self, contestant: Contestant, cell: Cell, params: Arrays, images: np.ndarray, cotangent: np.ndarray):
        check_device(cell.device)
        self.contestant, self.cell = contestant, cell
        self.layout, self.way = LAYOUTS[contestant.program.layout], contestant.program.way
        dtype = getattr(torch, cell.storage)
        with torch.device("meta"):
            model = contestant.program.make(cell.config, contestant.formulation)
        model.load_state_dict(self._state(params), assign=True)
        model.train(cell.mode == "training")
        self.model = model
        self.images = to_torch(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(cell.device, dtype)
        self.cotangent = to_torch(cotangent).to(cell.device, dtype)
        self.run: Any = WAYS[self.way](model)
        if cell.mode == "training":
            model.requires_grad_(True)
            self.optimiser = torch.optim.SGD(model.parameters(), lr=0.0)

    def _state(self, params: Arrays) -> dict[str, torch.Tensor]:
        state, dtype = relabel(params, LINEN, self.layout, self.cell.config), getattr(torch, self.cell.storage)
        return {name: to_torch(array).to(self.cell.device, dtype) for name, array in state.items()}

    def load(self, params: Arrays) -> None:
        """Other weights, by canonical names, for the same program: what is compiled stays so."""
        self.model.load_state_dict(self._state(params))
        if self.way == "packed":
            self.run = WAYS[self.way](self.model)

    def __call__(self) -> None:
        self._once()

    def _once(self) -> Any:
        with no_tf32(self.cell.dtype == "tf32"):
            result = {"training": self._step, "inference": self._infer}[self.cell.mode]()
        if self.cell.device == "cuda":
            torch.cuda.synchronize()
        return result

    def _infer(self) -> torch.Tensor:
        with torch.inference_mode():
            return self.run(self.images)

    def _step(self) -> None:
        with torch.enable_grad():
            self.optimiser.zero_grad(set_to_none=True)
            (self.run(self.images) * self.cotangent).sum().backward()
        self.optimiser.step()

    def logits(self) -> np.ndarray:
        """(batch, classes), computed as when it is timed."""
        return to_numpy("logits", self._once())

    def updates(self, rate: float) -> dict[str, np.ndarray]:
        """What a step of this rate takes from each parameter, over the rate, by canonical names; they come back."""
        before = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.optimiser.param_groups[0]["lr"] = rate
        self._once()
        self.optimiser.param_groups[0]["lr"] = 0.0
        moved = {}
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                moved[name] = to_numpy(name, ((before[name].double() - value.double()) / rate).cpu())
                value.copy_(before[name])
        return relabel(moved, self.layout, LINEN, self.cell.config)

    def kernels(self) -> str | None:
        """By which kernels this runs on a CPU, "layers" where it calls its layers as they are, None where all do."""
        cell = self.cell
        if self.way == "packed":
            return str(self.run.kernels)
        dtype = getattr(torch, cell.storage)
        fast = (cell.device, cell.mode, self.way) == ("cpu", "inference", "plain") and dtype in torch_inference.DTYPES
        if not (fast and self.contestant.program.ours):
            return None
        formulation, config = self.contestant.formulation, cell.config
        mixings = (
            (TOKENS[formulation.tokens], config.hidden_dim * config.tokens_mlp_dim),
            (CHANNELS[formulation.channels], config.num_tokens * config.channels_mlp_dim),
        )
        ways = [
            torch_inference.way_of(mixing, dtype, config.activation, cell.batch * elements) or "layers"
            for mixing, elements in mixings
        ]
        return ways[0] if ways[0] == ways[1] else f"{ways[0]} for tokens, {ways[1]} for channels"

    def memory(self) -> int | None:
        """Bytes that a call takes at its height, beyond weights and inputs: in training gradients too."""

        def forget() -> None:  # gradients of the step before, which are there as long as nobody takes the next one
            self.model.zero_grad(set_to_none=True)

        if self.cell.device == "cpu":
            return extra_memory(self, forget)
        forget()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self()
        return int(torch.cuda.max_memory_allocated() - before)


def gemm(cell: Cell, size: int) -> Callable[[], None]:
    """A product of two square matrices in the cell's dtype, on its device."""
    a, b = (torch.randn(size, size).to(cell.device, getattr(torch, cell.storage)) for _ in range(2))
    return _product(cell, lambda: a @ b)


def packed_gemm(cell: Cell, size: int) -> Callable[[], None]:
    """The same by a matrix that is packed, as `PackedMixer` has them."""
    a, b = (torch.randn(size, size).to(getattr(torch, cell.storage)) for _ in range(2))
    packed = packed_product(b)
    return _product(cell, lambda: packed(a))


def _product(cell: Cell, multiply: Callable[[], torch.Tensor]) -> Callable[[], None]:
    def call() -> None:
        with no_tf32(cell.dtype == "tf32"), torch.inference_mode():
            multiply()
        if cell.device == "cuda":
            torch.cuda.synchronize()

    return call


def check_device(device: str) -> None:
    """Raises `ConfigError` for a device that torch does not have."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is 'cuda', and torch {torch.__version__} finds no CUDA device; use cpu")


@contextlib.contextmanager
def compiled_anew() -> Iterator[None]:
    """Nothing that was compiled before counts, in memory or on disk, so that compile times are whole."""
    from torch._inductor import config

    torch._dynamo.reset()
    # As many programs as there are formulations share their code; beyond a limit torch would run them as they are.
    programs = torch._dynamo.config.patch(recompile_limit=1000, fail_on_recompile_limit_hit=True)
    with programs, config.patch(force_disable_caches=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # of torch's compiler itself
        yield


def start_compiler() -> None:
    """Compile something small, so that what torch's compiler does only once is in nobody's compile time.

    What it raises, it will raise again where it is in somebody's way.
    """
    layer, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    with compiled_anew(), contextlib.suppress(Exception):
        torch.compile(layer, dynamic=False)(x).sum().backward()
        with torch.inference_mode():
            torch.compile(torch.nn.Linear(3, 2), dynamic=False)(x)
