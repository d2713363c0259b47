"""The same losses in PyTorch, as a user would write them: a loop over vmap(grad(loss)), eager or compiled."""

import warnings

import numpy as np
import torch
from torch.func import grad, vmap


def losses(constants: np.ndarray) -> dict:
    """The losses by the key of their problem, functions of one flat vector of parameters."""
    numbers = torch.from_numpy(constants)

    def product(w):
        return (w.prod() - 1) ** 2 / 2

    def double_well(x):
        return (x[0] ** 2 - 1) ** 2 / 4

    def tanh_neuron(w):
        x, y = numbers.reshape(2, -1)
        return ((torch.tanh(w[0] * x + w[1]) - y) ** 2).mean() / 2

    def relu_toy(w):
        return ((torch.relu(w[1] * torch.relu(w[0] * numbers)) - numbers) ** 2).mean() / 2

    def linear_5_5_5_5(w):
        first, second, third = w.reshape(3, 5, 5)
        return ((third @ (second @ first) - numbers.reshape(5, 5)) ** 2).sum() / 2

    def linear_8_8_10(w):
        product = w[64:].reshape(10, 8) @ w[:64].reshape(8, 8)
        return ((product @ numbers[:64].reshape(8, 8) - numbers[64:].reshape(10, 8)) ** 2).sum() / 2

    def mlp_2_8_1(w):
        x, y = numbers[:64].reshape(32, 2), numbers[64:]
        hidden = torch.tanh(x @ w[:16].reshape(8, 2).T + w[16:24])
        return ((hidden @ w[24:32] + w[32] - y) ** 2).mean() / 2

    def mlp_784_32_10(w):
        x, classes = numbers[: 256 * 784].reshape(256, 784), numbers[256 * 784 :].long()
        hidden = torch.tanh(x @ w[:25088].reshape(32, 784).T + w[25088:25120])
        output = hidden @ w[25120:25440].reshape(10, 32).T + w[25440:]
        return torch.nn.functional.cross_entropy(output, classes)

    named = (double_well, tanh_neuron, relu_toy, linear_5_5_5_5, linear_8_8_10, mlp_2_8_1, mlp_784_32_10)
    return {loss.__name__: loss for loss in named} | {"product_of_2": product, "product_of_4": product}


class Loop:
    """A loop with its starts, ready to run; ``compiled`` puts the step through torch.compile first."""

    def __init__(
        self, key: str, starts: np.ndarray, step_size: float, constants: np.ndarray, compiled: bool = False
    ) -> None:
        gradient = vmap(grad(losses(constants)[key]))

        def step(states):
            return states - step_size * gradient(states)

        self.step = step
        if compiled:
            torch._dynamo.reset()
            self.step = torch.compile(step)
        self.starts = torch.from_numpy(starts.copy())
        self.ends = self.starts

    def run(self, steps: int) -> None:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            states = self.starts
            for _ in range(steps):
                states = self.step(states)
            self.ends = states

    def states(self) -> np.ndarray:
        """Where the last run ended, one row per start."""
        return self.ends.numpy()
