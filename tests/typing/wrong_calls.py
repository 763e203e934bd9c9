"""Calls that type checkers must refuse: an ignored error that is none is an error itself."""

# ruff: noqa: B018

import numpy as np

import normcore as nc

x = np.ones((4, 3, 5), np.float32)

nc.layer_norm("x")  # type: ignore
nc.layer_norm(x, eps="small")  # type: ignore
nc.layer_norm(x, axis=1.5)  # type: ignore
nc.layer_norm(x, return_stats="yes")  # type: ignore
nc.layer_norm(x, residual=3)  # type: ignore
nc.layer_norm(x, None, None, -1)  # type: ignore
nc.layer_norm(x, heft=None)  # type: ignore
nc.batch_norm(x, training="False")  # type: ignore
nc.batch_norm(x, running_mean=0.0)  # type: ignore
nc.group_norm(x)  # type: ignore
nc.group_norm(x, "2")  # type: ignore
nc.local_response_norm(x, 3, across="time")  # type: ignore
nc.layer_norm_backward(x, x, stats=x)  # type: ignore
nc.batch_renorm(x)  # type: ignore
nc.layer_norm(x).rstd  # type: ignore
nc.BatchNorm("3")  # type: ignore
nc.BatchNorm(3, ghost_size=2)  # type: ignore
nc.BatchNorm(3, comm=5)  # type: ignore
nc.BatchNorm(3).heft  # type: ignore
nc.BatchNorm(3).weight.shape  # type: ignore
nc.LayerNorm(5)("x")  # type: ignore
nc.InstanceNorm(3, comm=None)  # type: ignore
nc.set_num_threads("all")  # type: ignore
