"""Trains a unitary RNN to remember ten symbols over many time steps, and an LSTM beside it.

The copying task: ten symbols, ``--delay`` blanks, then a mark after which the symbols are to be said
again.  Whoever answers without memory has the loss 10 log(8) / (delay + 20).

    python examples/long_memory.py
"""

import argparse
import math
import time

import torch
from torch import Tensor, nn

import projunn
from projunn.nn import UnitaryRNN
from projunn.optim import RMSprop

SYMBOLS, LENGTH = 8, 10  # and two more: the blank, 8, and the mark, 9


def draw(delay: int, batch: int) -> tuple[Tensor, Tensor]:
    """Inputs (T, batch, 10), one-hot, and the symbols to answer at each time step (T, batch)."""
    symbols = torch.randint(SYMBOLS, (LENGTH, batch))
    steps = torch.full((delay + 2 * LENGTH, batch), SYMBOLS)
    answers = steps.clone()
    steps[:LENGTH], steps[-LENGTH - 1], answers[-LENGTH:] = symbols, SYMBOLS + 1, symbols
    return nn.functional.one_hot(steps, SYMBOLS + 2).float(), answers


def train(rnn: nn.Module, options: argparse.Namespace) -> tuple[float, float]:
    """The loss and the share of right symbols after training, on new sequences."""
    readout = nn.Linear(options.hidden, SYMBOLS + 1)
    parameters = [*rnn.parameters(), *readout.parameters()]
    optimizer = RMSprop(parameters, lr=1e-3)  # rank 1; the LSTM's weights take torch's own step
    for _ in range(options.steps):
        x, y = draw(options.delay, 32)
        loss = nn.functional.cross_entropy(readout(rnn(x)[0]).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    with torch.no_grad():
        x, y = draw(options.delay, 256)
        answers = readout(rnn(x)[0])
        right = (answers[-LENGTH:].argmax(-1) == y[-LENGTH:]).float().mean().item()
        return nn.functional.cross_entropy(answers.flatten(0, 1), y.flatten()).item(), right


def main() -> dict[str, float]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--delay", type=int, default=100, help="blanks between symbols and answer")
    parser.add_argument("--hidden", type=int, default=128, help="units")
    parser.add_argument("--steps", type=int, default=250, help="of training, of each model")
    options = parser.parse_args()
    naive = LENGTH * math.log(SYMBOLS) / (options.delay + 2 * LENGTH)
    print(f"delay {options.delay}: a naive guess has the loss {naive:.4f}, 12.5 % right")
    losses = {"naive": naive}
    unitary = UnitaryRNN(SYMBOLS + 2, options.hidden)
    for name, rnn in {"unitary": unitary, "lstm": nn.LSTM(SYMBOLS + 2, options.hidden)}.items():
        torch.manual_seed(0)
        started = time.perf_counter()
        losses[name], right = train(rnn, options)
        seconds = time.perf_counter() - started
        print(f"{name:8} loss {losses[name]:.4f}  {right:6.1%} right  {seconds:.0f} s")
    print(f"unitarity defect {projunn.unitarity_defect(unitary.weight_hh_l0).item():.1e}")
    return losses


if __name__ == "__main__":
    main()
