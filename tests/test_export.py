"""An exported policy acts as the agent does: in onnxruntime, and in a process that has NumPy alone."""

import subprocess
import sys
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import onnxruntime
import pytest
from gymnasium import spaces

from offroad import export
from offroad.agents import AGENTS, PPO
from offroad.data.spaces import Spaces
from offroad.errors import OffroadError
from offroad.export import export_policy, graph, to_numpy, to_onnx
from offroad.nets.encoder import Flat, Pixels
from offroad.nets.relational import LEAN, PAPER, Slots
from offroad.train.collect import clip_to


@pytest.fixture(autouse=True)
def _symbolic_sizes():
    """Policies are traced with a batch of symbolic size, which the checks of shapes in tests cannot compare."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


VECTOR = spaces.Box(-3, 3, (5,), seed=0)
IMAGE = spaces.Box(0, 255, (14, 12, 3), np.uint8, seed=0)
PARTS = spaces.Dict(
    camera=spaces.Box(0, 255, (1, 12, 12), np.uint8),
    joints=spaces.Box(-1, 1, (2,), np.float64),
    gear=spaces.Discrete(3, start=1),
    switches=spaces.MultiBinary(4),
    seed=0,
)
ENTITIES = spaces.Dict(
    robot=spaces.Box(-1, 1, (3,)),
    objects=spaces.Box(-1, 1, (4, 5)),
    goals=spaces.Box(-1, 1, (4, 2)),
    mask=spaces.MultiBinary(4),
    seed=0,
)
# Bounds well inside of what the policies want, so that clipping matters.
TORQUE = spaces.Box(np.float32([-0.01, 0.2]), np.float32([0.01, 0.4]))
CHOICE = spaces.Discrete(4, start=2)
CONV = Flat(Pixels((4, 3), (3, 2), (2, 1), 8))


def create(name, observation, action, **options):
    kind, config = AGENTS[name]
    config = replace(config(), hidden=(16, 16), **options)
    return kind.create(Spaces(observation, action, 1), config, jax.random.key(1))


CASES = {f"{name} {type(a).__name__}": (name, VECTOR, a, {}) for name in AGENTS for a in (TORQUE, CHOICE)}
CASES |= {
    "sac normalised": ("sac", VECTOR, TORQUE, {"normalise_observation": True}),
    "image": ("ppo", IMAGE, TORQUE, {"encoder": CONV}),
    "dict": ("ppo", PARTS, TORQUE, {"encoder": CONV, "activation": "silu"}),
    "one-hot": ("ppo", spaces.Discrete(6, seed=0), CHOICE, {"activation": "elu"}),
    "gelu": ("ppo", VECTOR, TORQUE, {"activation": "gelu"}),
    "recurrent": ("ppo", VECTOR, TORQUE, {"recurrent": 7, "minibatch": 2048}),
    "relational": ("ddpg", ENTITIES, TORQUE, {"encoder": replace(LEAN, width=8, scales=(1, 50)), "binary": (1,)}),
    "relational, additive": ("sac", ENTITIES, TORQUE, {"encoder": replace(PAPER, width=8)}),
    "slots": ("bc", ENTITIES, TORQUE, {"encoder": Slots((1, 50))}),
}


def observations(agent, count):
    """Samples of the space; images differ in brightness too, or else all would look alike."""
    samples = [agent.spaces.observation.sample() for _ in range(count)]
    brightness = np.linspace(0, 1, count)

    def stack(*rows):
        x = np.stack(rows)
        return (x * brightness.reshape(-1, *[1] * (x.ndim - 1))).astype(x.dtype) if x.ndim == 4 else x

    return jax.tree.map(stack, *samples)


def trained(agent):
    """Weights and moments away from where they start: actions differ and run into their bounds."""
    random = np.random.default_rng(0)
    moved = jax.tree.map(
        lambda x: x + 0.3 * random.standard_normal(x.shape).astype(x.dtype) if x.dtype.kind == "f" else x, agent
    )
    norm = agent.observation_norm.update(jax.tree.map(jnp.asarray, observations(agent, 20)))
    return eqx.tree_at(lambda a: a.observation_norm, moved, norm)


def parts(observation):
    return observation if isinstance(observation, dict) else {"observation": observation}


NUMPY_ONLY = """
import sys
import numpy as np
sys.path.insert(0, ".")
from policy import Policy
policy = Policy("policy.npz")
with np.load("observations.npz") as file:
    observation = dict(file)
rows = [policy(observation), policy(observation)]
policy.reset()
first = {name: x[0] for name, x in observation.items()}
rows.append(np.stack([policy(first), policy(first)]))
assert not {"jax", "onnx", "offroad", "equinox"} & set(sys.modules)
np.savez("actions.npz", *rows)
"""


@pytest.mark.parametrize("case", CASES)
def test_exported_policies_act_as_the_agent_does(case, tmp_path):
    name, space, actions, options = CASES[case]
    try:
        agent, batch = trained(create(name, space, actions, **options)), 6
    except OffroadError as error:
        pytest.skip(str(error))  # sac has no discrete actions
    observation = observations(agent, batch)
    memory, wanted = agent.initial_memory(batch), []
    for _ in range(2):  # the second time with memory, if there is any
        action, memory = agent.act(observation, None, memory)
        wanted.append(np.asarray(clip_to(agent.spaces.action, action)))
    assert np.ptp(wanted[0], axis=0).max() > 1e-3, "one action for everything tests nothing"
    if jax.tree.leaves(memory):
        assert np.abs(wanted[0] - wanted[1]).max() > 1e-4

    paths = export_policy(agent, tmp_path)
    assert [path.name for path in paths] == ["policy.py", "policy.npz", "policy.onnx"]

    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    inputs = {x.name: x for x in session.get_inputs()}
    feed = {n: np.asarray(x) for n, x in parts(observation).items()}
    kinds = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
    feed = {n: x.astype(kinds[inputs[n].type]) for n, x in feed.items()}
    state = [np.zeros((batch, *x.shape[1:]), np.float32) for n, x in inputs.items() if n not in feed]
    for want in wanted:
        action, *state = session.run(None, feed | dict(zip((n for n in inputs if n not in feed), state)))
        np.testing.assert_allclose(action, want, atol=1e-5)

    np.savez(tmp_path / "observations.npz", **parts(observation))
    subprocess.run([sys.executable, "-I", "-c", NUMPY_ONLY], cwd=tmp_path, check=True)
    with np.load(tmp_path / "actions.npz") as found:
        for i, want in enumerate(wanted):
            np.testing.assert_allclose(found[f"arr_{i}"], want, atol=1e-5)
            assert found[f"arr_{i}"].dtype == want.dtype
        np.testing.assert_allclose(found["arr_2"], [w[0] for w in wanted], atol=1e-5)  # one observation, no batch axis


def test_convolutions_as_accelerators_compute_them(tmp_path, monkeypatch):
    """There an encoder keeps XLA's convolution; on a CPU it is a matrix product."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    test_exported_policies_act_as_the_agent_does("image", tmp_path)
    assert "_conv(" in (tmp_path / "policy.py").read_text().partition("def _act")[2]


def test_weights_are_folded():
    """No node is left that depends on weights alone."""
    traced = graph.trace(create("ppo", VECTOR, TORQUE))
    assert all(any(isinstance(x, graph.Value) for x in node.inputs) for node in traced.nodes)
    assert [node.op for node in traced.nodes].count("dot_general") == 3
    assert len(traced.nodes) < 20


class Odd(PPO):
    def act(self, observation, key=None, memory=()):
        return jnp.cumsum(observation, axis=1)[:, :2], memory


def test_what_no_back_end_knows_is_named():
    plain = create("ppo", VECTOR, TORQUE)
    odd = Odd(**{name: getattr(plain, name) for name in plain.__dataclass_fields__})
    with pytest.raises(OffroadError, match="computes 'cumsum', which cannot be exported"):
        graph.trace(odd)


def test_both_back_ends_know_every_primitive():
    made_by_lowering = {"where", "reshape", "broadcast", "slice", "conv"}
    numpy = {*to_numpy_module.ELEMENTWISE, *to_numpy_module.STRUCTURAL}
    assert graph.PRIMITIVES | made_by_lowering == numpy
    assert to_numpy_module.ELEMENTWISE.keys() == to_onnx_module.ELEMENTWISE.keys()


to_numpy_module, to_onnx_module = sys.modules["offroad.export.to_numpy"], sys.modules["offroad.export.to_onnx"]


def test_without_onnx_the_numpy_policy_remains(tmp_path, monkeypatch):
    agent = create("ppo", VECTOR, CHOICE)
    monkeypatch.setitem(sys.modules, "onnx", None)  # as if it were not installed
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    assert [path.name for path in export_policy(agent, tmp_path)] == ["policy.py", "policy.npz"]
    with pytest.raises(OffroadError, match=r"pip install 'offroad\[export\]'"):
        to_onnx(graph.trace(agent))


def test_the_source_says_what_it_is():
    source, _ = to_numpy(graph.trace(create("ppo", PARTS, CHOICE, encoder=CONV)), "ppo trained in a test")
    assert source.startswith('"""ppo trained in a test')
    compile(source, "policy.py", "exec")
