"""The examples of learned rotations and orthogonal fine-tuning, run in a small form."""

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch

import projunn

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    """Imports a script as Python runs it, beside the other files of its folder, with some options."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
        for module in (name, "tiny_transformer"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        return importlib.import_module(name)

    return load


SMALL = ("--width", "32", "--training-steps")


def test_learned_rotations(example, capsys):
    losses = example("learned_rotations", *SMALL, "150", "--steps", "20", "--rank", "4").main()
    assert 0 < losses["float32"] < 0.9 * math.log(128)
    assert losses["float32"] < losses["learned"] < losses["as it is"]
    said = capsys.readouterr().out
    for name in ("as it is", "Hadamard", "learned"):
        assert f"{losses[name]:.3f}" in said


def test_a_rotated_model_computes_what_it_did_where_nothing_is_rounded(example):
    module = example("learned_rotations")
    torch.manual_seed(0)
    model = module.TinyTransformer(32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.rand(32) + 0.5)
    tokens = torch.randint(128, (3, 20))
    before = model(tokens)
    module.fold_norms(model)
    after = module.Rotated(model, projunn.init.haar_(torch.empty(32, 32)))(tokens)
    torch.testing.assert_close(after, before, rtol=0, atol=2e-5)


def test_orthogonal_finetuning(example, capsys):
    options = ("30", "--block-size", "8", "--steps", "20")
    found = example("orthogonal_finetuning", *SMALL, *options).main()
    assert found["fine-tuned"] < found["pretrained"]
    assert found["merged"] == pytest.approx(found["fine-tuned"], abs=1e-5)
    assert found["defect"] < 1e-6
    assert found["singular values"] < 1e-6
    assert f"{found['fine-tuned']:.3f}" in capsys.readouterr().out
