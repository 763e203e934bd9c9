"""Masks of the batch norms and statistics over processes, on devices: the tests of the CPU.

An exchange gets NumPy's arrays here; test_cuda_life.py has those that NumPy cannot read.
"""

import pytest
import test_mask_weights
import test_masks
import test_processes
from both_devices import device as device

# Where the host knows no weight, and what is of the CPU alone, there is nothing to test.
ON_DEVICES = {
    test_masks: """against_the_formula shapes large_mean magnitudes layer batch_renorm
        what_does_not_count_may_hold_anything bools_are_packed_data_and_integers_repeat
        a_mask_of_ones_is_none a_mask_of_nothing mean_only_batch_norm
        running_statistics_know_no_mask
        where_nothing_counts_y_is_bias_and_the_buffers_stay padding_changes_nothing""",
    test_mask_weights: """the_sum_of_weights_does_not_matter layouts any_scale_of_the_weights
        masks_of_0_and_1_are_the_packed_data one_position_has_no_unbiased_variance
        almost_one_position over_processes one_position_in_all_processes""",
    test_processes: """as_one_process_on_the_joined_batch large_mean masks_count_over_all
        stored_statistics_need_no_others all_without_samples recomputed_statistics_are_of_all
        samples_without_positions_count_for_nothing""",
}
for module, names in ON_DEVICES.items():
    for name in names.split():
        globals()[f"test_{name}_{module.__name__}"] = getattr(module, f"test_{name}")


@pytest.fixture
def isa():
    """Which the tests of the CPU go through."""
