"""Fine-tunes a language model by rotations of the inputs of its layers, and merges them at the end.

    y = (x R) W^T,  R block-diagonal and orthogonal, the identity at the start      W <- W R^T at the end

A small transformer learns the English of Python's manual, and is then fine-tuned to Python's sources.
Only the blocks of R learn.  The merged model has the layers of the pretrained one, and the singular
values of all its weights.

    python examples/orthogonal_finetuning.py
"""

import argparse
import copy

import torch
from tiny_transformer import TinyTransformer, evaluate, manual, sources, split, train

import projunn
from projunn.nn import finetune, merge
from projunn.optim import AdamW


def spectra(model: torch.nn.Module) -> list[torch.Tensor]:
    """The singular values of the weights of the blocks, in their order."""
    return [
        torch.linalg.svdvals(layer.weight.detach().double())
        for name, layer in model.named_modules()
        if name.startswith("blocks") and isinstance(layer, torch.nn.Linear)
    ]


def main() -> dict[str, float]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=int, default=128, help="of the model")
    parser.add_argument("--block-size", type=int, default=32, help="of the rotations")
    parser.add_argument("--training-steps", type=int, default=200, help="on the manual")
    parser.add_argument("--steps", type=int, default=100, help="on the sources")
    parser.add_argument("--rank", type=int, default=4, help="of a step of a block")
    options = parser.parse_args()
    torch.manual_seed(0)
    (english, _), (text, held_out) = split(manual()), split(sources())

    model = TinyTransformer(options.width)
    adam = torch.optim.AdamW(model.parameters(), lr=5e-3)
    train(model, adam, english, model.context, options.training_steps)
    pretrained = copy.deepcopy(model)
    losses = {"pretrained": evaluate(model, held_out, model.context)}
    print(f"a transformer of width {options.width}, trained on English, reads Python's sources")
    print(f"  pretrained             {losses['pretrained']:.3f} nats a byte")

    finetune(model, "blocks.*", options.block_size)
    rotations = projunn.unitary_parameters(model)
    optimizer = AdamW(rotations, lr=1e-2, rank=options.rank)
    seconds = train(model, optimizer, text, model.context, options.steps)
    losses["fine-tuned"] = evaluate(model, held_out, model.context)
    count = sum(r.shape[0] * r.shape[1] * (r.shape[1] - 1) // 2 for r in rotations)
    print(f"  rotated, {count:,} angles   {losses['fine-tuned']:.3f}  in {seconds:.0f} s")
    defect = max(projunn.unitarity_defect(r).max().item() for r in rotations)

    merge(model)
    losses["merged"] = evaluate(model, held_out, model.context)
    print(f"  merged                 {losses['merged']:.3f}")
    pairs = zip(spectra(pretrained), spectra(model), strict=True)
    error = max(((a - b).abs().max() / a[0]).item() for a, b in pairs)
    print(
        f"the blocks are off orthogonal ones by {defect:.0e}, singular values have moved by {error:.0e}"
    )
    return {**losses, "defect": defect, "singular values": error}


if __name__ == "__main__":
    main()
