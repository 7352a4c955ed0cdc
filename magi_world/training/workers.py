"""Processes that share the work of a batch, each on cores of its own.

torch's threads split one operation at a time, and a step of a small model is thousands of them,
most too small to be split: two threads hardly help it, two processes with half of the batch each
do. Their gradients are averaged, so a step is one of the whole batch.

Weights lie in memory that all of them share; each step sends a seed and gets a gradient. What the
workers draw follows from the seeds alone, so a run that is resumed still gives the same bits.
"""

import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, multiprocessing, nn

from magi_world.errors import CheckpointError


def backward(stage: Any, generator: torch.Generator, precision: str) -> dict[str, Tensor]:
    """Gradients of the loss of one random batch, left in the module; returns loss and scalars."""
    stage.module.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        loss, scalars = stage.loss(generator)
    loss.backward()
    return {"loss": loss.detach(), **scalars}


class Workers:
    """Other processes that compute gradients of the same stage.

    Args:
        make: makes the stage, here and, unpickled, in every worker; its module must be part of what
            is pickled, because that is how its weights come to be shared.
        count: processes in all, this one among them; the stage divides its batch by it.
    """

    def __init__(self, make: Callable[[], Any], count: int) -> None:
        self.make, self.count = make, count
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._gradients: list[Tensor] = []

    def start(self, module: nn.Module, precision: str) -> None:
        """Start the processes and give each its part of this one's threads."""
        self._threads = torch.get_num_threads()
        torch.set_num_threads(max(1, self._threads // self.count))
        size = sum(p.numel() for p in module.parameters() if p.requires_grad)
        context = multiprocessing.get_context("spawn")  # a forked autograd refuses to run
        for _ in range(self.count - 1):
            gradient = torch.zeros(size).share_memory_()
            here, there = context.Pipe()
            arguments = (self.make, gradient, precision, torch.get_num_threads(), there)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            there.close()  # so that a dead worker is seen as the end of its pipe
            self._pipes.append(here)
            self._processes.append(process)
            self._gradients.append(gradient)

    def stop(self) -> None:
        """End the processes; their memory goes with them."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()
        self._pipes, self._processes, self._gradients = [], [], []
        torch.set_num_threads(self._threads)

    def backward(self, stage: Any, generator: torch.Generator, precision: str) -> dict[str, Tensor]:
        """As :func:`backward`, with the mean of all processes in the module and in the scalars.

        Raises:
            CheckpointError: a worker has died.
        """
        seeds = torch.randint(2**62, (len(self._pipes),), generator=generator).tolist()
        results = []
        try:
            for pipe, seed in zip(self._pipes, seeds, strict=True):
                pipe.send((seed, stage.progress))
            results.append(backward(stage, generator, precision))
            results += [pipe.recv() for pipe in self._pipes]
        except (EOFError, OSError):
            raise CheckpointError(
                f"a worker of stage {stage.name} has died, perhaps for want of memory: resume, "
                "with fewer workers if it happens again"
            ) from None
        total = torch.stack(self._gradients).sum(0)
        at = 0
        for parameter in _learning(stage.module):
            part = total[at : at + parameter.numel()].view_as(parameter)
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = (own + part) / self.count
            at += parameter.numel()
        return {
            key: torch.stack([torch.as_tensor(one[key]) for one in results]).mean()
            for key in results[0]
        }


def _learning(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _serve(
    make: Callable[[], Any], gradient: Tensor, precision: str, threads: int, pipe: Connection
) -> None:
    """Answer each seed with a gradient, until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that trains decides when to stop
    torch.set_num_threads(threads)
    stage = make()
    while True:
        try:
            seed, stage.progress = pipe.recv()
        except EOFError:
            return
        scalars = backward(stage, torch.Generator().manual_seed(seed), precision)
        at = 0
        for parameter in _learning(stage.module):
            part = gradient[at : at + parameter.numel()]
            if parameter.grad is None:
                part.zero_()
            else:
                part.copy_(parameter.grad.flatten())
            at += parameter.numel()
        try:
            pipe.send({key: float(value) for key, value in scalars.items()})
        except OSError:  # nobody waits for it any more
            return
