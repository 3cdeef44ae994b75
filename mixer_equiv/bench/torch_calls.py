"""Calls of Mixers in torch: inference, or a training step by `torch.optim.SGD`. Start reading at `TorchCall`."""

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
from mixer_equiv.bench.contestants import Entry, Execution
from mixer_equiv.bench.environment import extra_memory
from mixer_equiv.checkpoints.conversion import relabel
from mixer_equiv.equivalence.record.precision import no_tf32
from mixer_equiv.errors import ConfigError
from mixer_equiv.layouts import LAYOUTS, LINEN
from mixer_equiv.models.torch import fast_mlp
from mixer_equiv.models.torch.formulations import CHANNEL_MIXINGS, TOKEN_MIXINGS
from mixer_equiv.models.torch.packed import packed_product

Arrays = Mapping[str, np.ndarray]


# For each execution, the function that is called with images. The model has its dtype and its device already.
EXECUTIONS: Mapping[Execution, Callable[[Any], Callable[[torch.Tensor], torch.Tensor]]] = {
    "plain": lambda model: model,
    "compiled": partial(torch.compile, dynamic=False),
    "graphed": lambda model: CudaGraphModel(model),
    "packed": lambda model: model.packed(),
}


class CudaGraphModel:
    """A model in inference as a CUDA graph: the first call records its kernels, later calls launch them as one.

    All images have the shape of the first ones. A result is overwritten by the next call.
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
        with torch.cuda.stream(aside):  # libraries allocate their workspaces before the recording
            for _ in range(3):
                self.model(self.images)
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(self.graph):
            self.logits: torch.Tensor = self.model(self.images)


class TorchCall:
    """A `Call` of a torch module."""

    def __init__(self, entry: Entry, cell: Cell, params: Arrays, images: np.ndarray, cotangent: np.ndarray):
        check_device(cell.device)
        self.entry, self.cell = entry, cell
        self.layout, self.execution = LAYOUTS[entry.contestant.layout], entry.contestant.execution
        dtype = getattr(torch, cell.storage)
        with torch.device("meta"):
            model = entry.contestant.make(cell.config, entry.formulation)
        model.load_state_dict(self._state(params), assign=True)
        model.train(cell.mode == "training")
        self.model = model
        self.images = to_torch(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(cell.device, dtype)
        self.cotangent = to_torch(cotangent).to(cell.device, dtype)
        self.run: Any = EXECUTIONS[self.execution](model)
        if cell.mode == "training":
            model.requires_grad_(True)
            self.optimiser = torch.optim.SGD(model.parameters(), lr=0.0)

    def _state(self, params: Arrays) -> dict[str, torch.Tensor]:
        state, dtype = relabel(params, LINEN, self.layout, self.cell.config), getattr(torch, self.cell.storage)
        return {name: to_torch(array).to(self.cell.device, dtype) for name, array in state.items()}

    def load(self, params: Arrays) -> None:
        self.model.load_state_dict(self._state(params))
        if self.execution == "packed":
            self.run = EXECUTIONS[self.execution](self.model)

    def __call__(self) -> None:
        self._run()

    def _run(self) -> Any:
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
        return to_numpy("logits", self._run())

    def updates(self, rate: float) -> dict[str, np.ndarray]:
        before = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.optimiser.param_groups[0]["lr"] = rate
        self._run()
        self.optimiser.param_groups[0]["lr"] = 0.0
        moved = {}
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                moved[name] = to_numpy(name, ((before[name].double() - value.double()) / rate).cpu())
                value.copy_(before[name])
        return relabel(moved, self.layout, LINEN, self.cell.config)

    def kernels(self) -> str | None:
        """Name the kernels on a CPU, "layers" where the layers are called as they are; None in any other case."""
        cell = self.cell
        if self.execution == "packed":
            return str(self.run.kernels)
        dtype = getattr(torch, cell.storage)
        fast = (cell.device, cell.mode, self.execution) == ("cpu", "inference", "plain")
        fast = fast and dtype in fast_mlp.FAST_DTYPES
        if not (fast and self.entry.contestant.ours):
            return None
        formulation, config = self.entry.formulation, cell.config
        mixings = (
            (TOKEN_MIXINGS[formulation.tokens], config.hidden_dim * config.tokens_mlp_dim),
            (CHANNEL_MIXINGS[formulation.channels], config.num_tokens * config.channels_mlp_dim),
        )
        kernels = [
            fast_mlp.choose_path(mixing, dtype, config.activation, cell.batch * elements) or "layers"
            for mixing, elements in mixings
        ]
        return kernels[0] if kernels[0] == kernels[1] else f"{kernels[0]} for tokens, {kernels[1]} for channels"

    def memory(self) -> int | None:
        """Measure the memory of a call; in training it includes the gradients."""

        def forget() -> None:  # frees the gradients of the step before, which stay until the next step
            self.model.zero_grad(set_to_none=True)

        if self.cell.device == "cpu":
            return extra_memory(self, forget)
        forget()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self()
        return int(torch.cuda.max_memory_allocated() - before)


def matrix_product(cell: Cell, size: int) -> Callable[[], None]:
    """Make the product of two square matrices in the cell's dtype, on its device."""
    a, b = (torch.randn(size, size).to(cell.device, getattr(torch, cell.storage)) for _ in range(2))
    return _product(cell, lambda: a @ b)


def packed_matrix_product(cell: Cell, size: int) -> Callable[[], None]:
    """Make the product with a packed matrix, as `PackedMixer` has them."""
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
    """Raise `ConfigError` for a device that torch does not have."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is 'cuda', and torch {torch.__version__} finds no CUDA device; use cpu")


@contextlib.contextmanager
def fresh_compiler() -> Iterator[None]:
    """Reuse nothing that was compiled before, in memory or on disk, so that compile times are complete."""
    from torch._inductor import config

    torch._dynamo.reset()
    # All formulations share the code of a few functions. Beyond a limit of recompilations torch would not compile them.
    no_limit = torch._dynamo.config.patch(recompile_limit=1000, fail_on_recompile_limit_hit=True)
    with no_limit, config.patch(force_disable_caches=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # comes from torch's compiler itself
        yield


def warm_up_compiler() -> None:
    """Compile something small, so that the compiler's own start is in no entry's compile time.

    Errors are ignored: they will be raised again where an entry is compiled.
    """
    layer, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    with fresh_compiler(), contextlib.suppress(Exception):
        torch.compile(layer, dynamic=False)(x).sum().backward()
        with torch.inference_mode():
            torch.compile(torch.nn.Linear(3, 2), dynamic=False)(x)
