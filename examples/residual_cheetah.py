"""A log of 16 s corrects a simulator that knows nothing of friction, a delay, weak motors and heavy feet.

The log is of a HalfCheetah that hung in a stand (`residual_record.py` made it); the corrected one runs on the ground.
"""

import numpy as np

import offroad
from offroad import models

log = models.read_log("examples/residual_cheetah.csv")
joints = ("bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot")
simple = offroad.make_vec("offroad/HalfCheetah-v5", 8)
found = models.compare(simple, log, joints=joints)
for name in found.errors:
    print(f"{name:32} squared error after 0.32 s: {100 * found.shares(name)[31]:8.3f} % of the variance")
print(*found.model.notes, sep="\n")

env = models.ResidualEnv(simple, found.model)  # a vector environment like any other: train in it
env.reset(seed=0)
observation, reward, terminated, truncated, info = env.step(np.zeros((8, 6), np.float32))
print("trust", info["trust"].round(2))
