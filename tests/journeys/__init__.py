"""What PyTorch users do to modules, each as a function that does it and checks what must still hold.

`tests/test_modules.py` runs them on the layers of `LAYERS`, and reads in docs/modules.md which of them
must work and which must be refused.
"""

from tests.journeys import conversions as to
from tests.journeys import copies, weights
from tests.journeys import replacements as new
from tests.journeys.layers import LAYERS

__all__ = ["JOURNEYS", "LAYERS"]

JOURNEYS = {
    "`copy.deepcopy(m)`": copies.deepcopy,
    "`pickle`": copies.pickled,
    "`torch.save(m)`, `torch.load`": copies.saved_whole,
    "`load_state_dict`": copies.loaded,
    "`load_state_dict(assign=True)`": copies.loaded_by_assignment,
    "loading weights off the manifold (a warning), then `projunn.project_`": copies.loaded_off,
    "`m.double()`, `m.float()`": to.to_double_and_back,
    "`m.to(torch.complex128)`": to.to_complex,
    "`m.bfloat16()`, `m.half()`, then training": to.to_half_precision_while_training,
    "`m.to(memory_format=torch.channels_last)`": to.channels_last,
    "`m.share_memory()`": to.shared_memory,
    '`torch.device("meta")`, `to_empty`, loading': to.meta_then_empty_then_loaded,
    '`torch.device("meta")`, loading with `assign=True` (`from_pretrained`)': to.meta_then_assigned,
    "`init_empty_weights` of accelerate, loading": to.made_with_empty_weights,
    "`FakeTensorMode`": to.made_under_fake_tensors,
    "`type(p)(data)` in the place of `p` (offloading)": to.rebuilt_by_its_class,
    "`set_swap_module_params_on_conversion(True)`": to.conversion_by_swapping,
    "`set_overwrite_module_params_on_conversion(True)`": to.conversion_by_overwriting,
    "`m.weight = nn.Parameter(...)`": new.assigned,
    "`torch.func.functional_call`": new.called_functionally,
    "`torch.func.stack_module_state`": new.stacked,
    "`prune`": new.pruned,
    "`spectral_norm`": new.normalised_spectrally,
    "`weight_norm`": new.normalised_by_weight_norm,
    "`parametrize.register_parametrization`": new.parametrized,
    "`fully_shard(m)` (FSDP2)": new.sharded,
    "`fully_shard(m, ignored_params=set(projunn.unitary_parameters(m)))`": new.left_out_of_sharding,
    "`FullyShardedDataParallel(m)` (FSDP1)": new.flattened,
    "`FullyShardedDataParallel(m, use_orig_params=True)`": new.flattened_with_its_own_parameters,
    "a step of `torch.optim` (a warning), then `projunn.project_`": weights.stepped_by_torch,
    "`nn.init` on the weight, then training": weights.initialised_by_hand,
    "`AveragedModel` (EMA, SWA), then `projunn.project_`": weights.averaged,
    "`projunn.unconstrain(m)`, then `torch.optim`": weights.unconstrained,
    "`m.weight.data`, `.detach()`, `state_dict()` in diagnostics and initialisers": weights.read_as_data,
}
