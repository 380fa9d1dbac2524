import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from offroad.errors import OffroadError
from offroad.train.devices import DataParallel

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import jax
import numpy as np
from jax_envs import point
from tiny import cheetah, leaves, ppo, sac, train_ppo, train_sac
from offroad.data.replay import Replay
from offroad import train
from offroad.errors import OffroadError
from offroad.train.off_policy import _JaxLoop as OffPolicy
from offroad.train.on_policy import _JaxLoop as OnPolicy

assert len(jax.devices()) == 2
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: compiled.append(name) if name.endswith("backend_compile_duration") else None
)
for learn, make in ((train_ppo, point), (train_sac, point), (train_ppo, cheetah), (train_sac, cheetah)):
    one, two = (learn(make(4), 128, devices=devices) for devices in (1, 2))
    assert len(jax.tree.leaves(one.agent)[0].devices()) == 1
    assert len(jax.tree.leaves(two.agent)[0].devices()) == 2
    for a, b in zip(leaves(one.agent), leaves(two.agent)):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
    for a, b in zip(one.history, two.history):
        assert a.keys() == b.keys()

loop = OnPolicy(ppo(point(4)), point(4), 0, 1, 2)
loop.start()
for call in range(3):
    before = len(compiled)
    loop.advance()
    assert (len(compiled) > before) == (call == 0), compiled[before:]
    assert loop._state.observation.addressable_shards[0].data.shape == (1, 2, 1)  # of 4 environments
    assert jax.tree.leaves(loop.agents)[0].sharding.is_fully_replicated

loop = OffPolicy(sac(point(4)), point(4), 0, Replay(100), 0, 8, 4, 2)
loop.start()
for call in range(3):
    before = len(compiled)
    loop.advance()
    assert (len(compiled) > before) == (call == 0), compiled[before:]
    assert loop._state.observation.addressable_shards[1].data.shape == (1, 2, 1)
text = loop._advance.lower(loop.agents, loop._state, loop._replay, loop.keys).compile().as_text()
assert "all-reduce" in text  # the gradients of the devices' parts of the batch are summed

try:
    train.on_policy(ppo(point(3), minibatch=8), point(3), 96, devices=2, progress=False)
except OffroadError as error:
    assert "3 environments or transitions cannot be shared out over 2 devices" in str(error)
else:
    raise AssertionError
print("done")
"""


def test_two_devices_learn_what_one_does():
    environment = dict(
        os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    )
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]))
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert found.stdout == "done\n", found.stderr


def test_devices_that_are_not_there_are_refused():
    count = len(jax.devices())
    for wrong in (0, count + 1):
        with pytest.raises(OffroadError, match=f"{wrong} devices asked for, {count} found .cpu."):
            DataParallel(wrong)
