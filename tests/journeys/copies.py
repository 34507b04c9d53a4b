"""Copies of a module, and files."""

import copy
import io
import pickle
import warnings

import torch

import projunn
from tests.journeys.layers import moved_off, said, same, stored, trains


def deepcopy(layer):
    module = layer.make()
    other = copy.deepcopy(module)
    same(layer, other, module)
    trains(layer, other)


def pickled(layer):
    module = layer.make()
    other = pickle.loads(pickle.dumps(module))
    same(layer, other, module)
    trains(layer, other)


def saved_whole(layer):
    module, file = layer.make(), io.BytesIO()
    torch.save(module, file)
    other = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    same(layer, other, module)
    trains(layer, other)


def loaded(layer):
    module, other = layer.make(), layer.make()
    other.load_state_dict(stored(module))
    same(layer, other, module)
    trains(layer, other)


def loaded_by_assignment(layer):
    module, other = layer.make(), layer.make()
    other.load_state_dict(stored(module), assign=True)
    same(layer, other, module)
    trains(layer, other)


def loaded_off(layer):
    module, other = layer.make(), layer.make()
    moved_off(module)
    with said("After load_state_dict"):
        other.load_state_dict(stored(module))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        projunn.project_(other)
    trains(layer, other)
